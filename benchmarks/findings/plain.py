"""Plain runs, for faults to be planted in: a split, a model, an optimizer, minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, Step, minibatches, watched
from thalweg import optim, tasks

Optimizer = Callable[[Any], torch.optim.Optimizer]
adamw: Optimizer = partial(torch.optim.AdamW, lr=1e-3)
momentum: Optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def train(
    model: nn.Module,
    split: tasks.Split,
    seed: int,
    steps: int,
    optimizer: Optimizer,
    *,
    batch: int = 64,
    warm: bool = False,
    **options: Any,
) -> Outcome:
    """Train on minibatches of a split; accuracies are measured on both of its parts.

    Args:
        warm: warm up over a tenth of the steps, then let the learning rate fall as a cosine.
        options: of :func:`benchmarks.findings.loop.watched`.
    """
    opt = optimizer(model.parameters())
    schedule = decaying(opt, steps) if warm else None
    batches = minibatches(split.train, batch, seed)
    return watched(
        model, opt, batches, steps, evaluate=(split.train, split.test), schedule=schedule, **options
    )


def decaying(opt: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up over a tenth of the steps, then a cosine down to nothing."""
    return torch.optim.lr_scheduler.LambdaLR(opt, optim.cosine(steps, warmup=steps // 10))


def clipping(norm: float) -> Step:
    """For ``before_step``: the norm of the whole gradient is at most this."""

    def clip(step: int, model: nn.Module) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), norm)

    return clip


def digits_mlp(seed: int, steps: int, optimizer: Optimizer = adamw, **options: Any) -> Outcome:
    """An MLP with two hidden layers of 128 on handwritten digits."""
    model = tasks.MLP((64, 128, 128, 10), seed=seed)
    return train(model, tasks.handwritten_digits(seed=seed), seed, steps, optimizer, **options)


def digits_cnn(seed: int, steps: int, optimizer: Optimizer = adamw, **options: Any) -> Outcome:
    """A CNN with batch norm on handwritten digits."""
    split = tasks.handwritten_digits(shape="image", seed=seed)
    return train(tasks.CNN(width=8, seed=seed), split, seed, steps, optimizer, **options)


def teacher_mlp(seed: int, steps: int, optimizer: Optimizer = momentum, **options: Any) -> Outcome:
    """An MLP with two hidden layers of 128 on the labels of a noisy teacher."""
    model = tasks.MLP((32, 128, 128, 10), seed=seed)
    return train(model, tasks.noisy_teacher(seed=seed), seed, steps, optimizer, **options)


def order_rnn(
    seed: int, steps: int, optimizer: Optimizer = adamw, length: int = 10, **options: Any
) -> Outcome:
    """A plain recurrent network that tells in which order two marks came."""
    model = tasks.RNN(6, 64, 4, seed=seed)
    split = tasks.temporal_order(length=length, seed=seed)
    return train(model, split, seed, steps, optimizer, **options)


def text_gpt(
    seed: int, steps: int, optimizer: Optimizer = adamw, *, batch: int = 8, warm: bool = False, **options: Any
) -> Outcome:
    """A GPT of one block, width 32, on windows of 32 characters of program text."""
    model = tasks.GPT(97, 32, layers=1, heads=2, width=32, seed=seed)
    opt = optimizer(model.parameters())
    schedule = decaying(opt, steps) if warm else None
    return watched(model, opt, windows(seed, batch), steps, schedule=schedule, **options)


def windows(seed: int, batch: int, length: int = 32) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows of program text, for ever."""
    text = tasks.library_text(max_characters=200_000)
    source = torch.Generator().manual_seed(seed)
    while True:
        yield text.batch("train", batch, length, source)
