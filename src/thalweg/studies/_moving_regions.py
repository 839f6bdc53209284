"""What the local complexity study trains: digits, read again and again about several kinds of points."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg import optim
from thalweg.probe import boundary_points, local_complexity
from thalweg.tasks import MLP, Split, accuracy, handwritten_digits, minibatch

EXAMPLES, BATCH, STEPS, LATE = 500, 100, 20_000, 17_500
MARKS = sorted({round(10 ** (k / 4)) for k in range(4, 17)} | set(range(5000, STEPS, 1250)))
POINTS, RADIUS, VERTICES = 256, 0.5, 20
ATTACK = 0.3  # in standard deviations of the pixels, each moved by as much


class Reading(NamedTuple):
    """One moment: counts about four kinds of points, and accuracies."""

    step: int
    fits: bool
    train: float
    random: float
    boundary: float
    attacked: float


def attacked(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Accuracy after one step of the fast gradient sign method."""
    moved = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(model(moved), targets), moved)
    return accuracy(model, inputs + ATTACK * gradient.sign(), targets)


def reader(model: nn.Module, split: Split, seed: int) -> Callable[[int], Reading]:
    points = split.train[0][:POINTS]
    low, high = float(split.train[0].min()), float(split.train[0].max())
    source = torch.Generator().manual_seed(seed)
    uniform = low + (high - low) * torch.rand(points.shape, generator=source)

    def count(where: Tensor) -> float:
        return local_complexity(model, where, radius=RADIUS, vertices=VERTICES).total

    def read(step: int) -> Reading:
        return Reading(
            step,
            accuracy(model, *split.train) == 1,
            count(points),
            count(uniform),
            count(boundary_points(model, points)),
            attacked(model, *split.test),
        )

    return read


@cache  # settings judge the same runs
def trained(seed: int, eps: float) -> tuple[dict[str, Any], list[Reading]]:
    split = handwritten_digits(train_size=EXAMPLES, seed=seed)
    model = MLP((64, 100, 100, 100, 10), seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=3e-3, eps=eps, weight_decay=0.01)
    spec = dict(optim.spec(optimizer))
    read = reader(model, split, seed)
    readings: list[Reading] = []
    curve = minibatch(
        model,
        split,
        optimizer,
        STEPS,
        BATCH,
        seed,
        evaluate_every=STEPS,
        on_step=lambda step, loss, batch: readings.append(read(step)) if step in MARKS else None,
    )
    if not curve.diverged:
        readings.append(read(STEPS))
    return spec, readings
