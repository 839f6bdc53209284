"""Runs whose dynamics change for good at one step: other data, a smaller rate, fewer layers that learn."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "phase change"
SWITCH = 200
DROP = 250
FREEZE = 150


def switched_data(seed: int, planted: bool) -> Outcome:
    """From step 200 on the pixels come in another order."""
    split = tasks.handwritten_digits(seed=seed)
    inputs, targets = split.train
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    other = inputs[:, order] if planted else inputs

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from islice(minibatches((inputs, targets), 64, seed), SWITCH - 1)
        yield from minibatches((other, targets), 64, seed + 1)

    model = tasks.MLP((64, 128, 128, 10), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return watched(model, opt, batches(), 400)


def dropped_rate(seed: int, planted: bool) -> Outcome:
    """A rate at which noisy labels keep the loss up falls to a tenth."""
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, 64, 10), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)

    def drop(step: int, model: nn.Module) -> None:
        if planted and step == DROP:
            opt.param_groups[0]["lr"] /= 10

    return watched(model, opt, minibatches(split.train, 32, seed), 450, before_step=drop)


def frozen_layers(seed: int, planted: bool) -> Outcome:
    """All but the last layer stop learning."""
    text = tasks.library_text(max_characters=200_000)
    model = tasks.GPT(97, 32, layers=1, heads=2, width=32, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(seed)

    def freeze(step: int, model: nn.Module) -> None:
        if planted and step == FREEZE - 1:
            for name, p in model.named_parameters():
                p.requires_grad_(name.startswith("head"))

    return watched(model, opt, iter(lambda: text.batch("train", 8, 32, source), None), 300, after_step=freeze)


data = Planted(
    NAME,
    f"pixels in another order from step {SWITCH}",
    "digits",
    "MLP",
    "AdamW",
    switched_data,
    SWITCH,
)
rate = Planted(
    NAME,
    f"learning rate a tenth from step {DROP}",
    "noisy teacher",
    "MLP",
    "SGD, momentum",
    dropped_rate,
    DROP,
)
frozen = Planted(
    NAME,
    f"all but the head frozen at step {FREEZE}",
    "text",
    "GPT",
    "AdamW",
    frozen_layers,
    FREEZE,
)
