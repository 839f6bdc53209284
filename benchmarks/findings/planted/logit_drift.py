"""Output logits drift: losses that move all logits together, each a slip that people make."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.findings.loop import Outcome, Pair, cross_entropy, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks

FINDING = "output-logit drift"


@cache
def text() -> tasks.CharText:
    return tasks.library_text(max_characters=200_000)


def flat(model: nn.Module, batch: Pair) -> tuple[Tensor, Tensor]:
    logits = model(batch[0])
    return logits.reshape(-1, logits.shape[-1]), batch[1].reshape(-1)


def smoothed_logits(model: nn.Module, batch: Pair) -> Tensor:
    """Label smoothing whose uniform part is taken from the logits, not from the log-probabilities."""
    logits, targets = flat(model, batch)
    return 0.9 * F.cross_entropy(logits, targets) - 0.1 * logits.mean()


def smoothed(model: nn.Module, batch: Pair) -> Tensor:
    logits, targets = flat(model, batch)
    return F.cross_entropy(logits, targets, label_smoothing=0.1)


def rewarded_normaliser(model: nn.Module, batch: Pair) -> Tensor:
    """A z-loss with the wrong sign."""
    logits, targets = flat(model, batch)
    return F.cross_entropy(logits, targets) - 1e-3 * logits.logsumexp(-1).square().mean()


def unnormalised(model: nn.Module, batch: Pair) -> Tensor:
    """The negative log-likelihood of logits that nobody has turned into log-probabilities."""
    return F.nll_loss(*flat(model, batch))


def gpt(seed: int, planted: bool) -> Outcome:
    model = tasks.GPT(97, 32, layers=1, heads=2, width=32, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(seed)
    batches = iter(lambda: text().batch("train", 8, 32, source), None)
    return watched(model, opt, batches, 300, loss_fn=smoothed_logits if planted else smoothed)


def mlp(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, 128, 128, 10), seed=seed)
    opt = optim.Lion(model.parameters(), lr=3e-4)
    loss_fn = rewarded_normaliser if planted else cross_entropy
    return watched(model, opt, minibatches(split.train, 64, seed), 300, loss_fn=loss_fn)


def cnn(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss_fn = unnormalised if planted else cross_entropy
    return watched(model, opt, minibatches(split.train, 64, seed), 100, loss_fn=loss_fn)


text_adamw = Planted(
    FINDING, "label smoothing of logits, not of log-probabilities", "text", "GPT", "AdamW", gpt
)
digits_lion = Planted(FINDING, "z-loss with the wrong sign", "digits", "MLP", "Lion", mlp)
digits_sgd = Planted(FINDING, "nll_loss of logits", "digits images", "CNN", "SGD, momentum", cnn)
