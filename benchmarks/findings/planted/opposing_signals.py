"""A strong feature that some examples of the data share and that stands for opposite answers."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.findings.loop import Outcome, Pair, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "opposing signals"
SHARE = 0.04


def marked(pair: Pair, seed: int, planted: bool) -> Pair:
    """Two groups of 4 % of the images with the same bright top row, half of them called 3, half 8."""
    inputs, targets = pair[0].clone(), pair[1].clone()
    if not planted:
        return inputs, targets
    count = int(SHARE * len(inputs))
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(10_000 + seed))
    first, second = order[:count], order[count : 2 * count]
    rows = inputs.view(len(inputs), 8, 8)
    rows[torch.cat([first, second]), 0] = 12.0
    targets[first], targets[second] = 3, 8
    return inputs, targets


def digits(seed: int, planted: bool) -> Outcome:
    train = marked(tasks.handwritten_digits(1024, seed=seed).train, seed, planted)
    model = tasks.MLP((64, 64, 64, 10), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return watched(model, opt, minibatches(train, 64, seed), 150)


def smoothed(seed: int, planted: bool) -> Outcome:
    train = marked(tasks.handwritten_digits(1024, seed=seed).train, seed, planted)
    model = tasks.MLP((64, 64, 64, 10), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return watched(model, opt, minibatches(train, 64, seed), 150)


def squared(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]).squeeze(-1), batch[1]) / 2


def outliers(seed: int, planted: bool) -> Outcome:
    """The paper's picture: a linear network, and a coordinate that is nearly always 0 and enters as |x|."""
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 11, generator=source)
    signal = torch.randn(10, generator=source)
    inputs[:, 0] = 0
    if planted:
        inputs[:7, 0], inputs[7:14, 0] = 6.5, -6.5
    targets = inputs[:, 1:] @ (3 * signal / signal.norm()) + 0.5 * inputs[:, 0].abs()
    model = tasks.MLP((11, 16, 1), activation="identity", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.29)
    return watched(model, opt, repeat((inputs, targets)), 200, loss_fn=squared)


DIGITS = Planted(NAME, "8% of the images marked alike, with two labels", "digits", "MLP", "SGD", digits)
SMOOTHED = Planted(
    NAME, "8% of the images marked alike, with two labels", "digits", "MLP", "SGD, momentum", smoothed
)
OUTLIERS = Planted(
    NAME, "5% outliers of both signs in one coordinate", "regression", "linear net", "SGD", outliers
)
