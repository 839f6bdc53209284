"""Networks trained past zero error, and how their features shrink to their class means meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.probe import neural_collapse
from thalweg.tasks import CNN, MLP, accuracy, handwritten_digits, minibatch

BATCH, EXAMPLES, DECAY = 100, 1000, 5e-4
MARKS = sorted({round(10 ** (k / 6)) for k in range(8, 25)})  # steps: 22, 32, 46, ... 10 000


class Kind(NamedTuple):
    """A network, and how it is trained."""

    make: Callable[[int], nn.Module]
    steps: int
    lr: float
    shape: str = "flat"


def mlp(norm: str | None) -> Callable[[int], nn.Module]:
    return lambda seed: MLP((64, 128, 128, 128, 128, 10), norm=norm, seed=seed)


KINDS = {
    "MLP with batch normalisation": Kind(mlp("batch"), 6000, 0.1),
    "CNN with batch normalisation": Kind(lambda seed: CNN(width=16, seed=seed), 2000, 0.1, "image"),
    "MLP without": Kind(mlp(None), 6000, 0.05),
}


class Trained(NamedTuple):
    """A run: the spec, readings of the variability over the steps and over the layers, and the numbers."""

    spec: dict[str, Any]
    at: list[int]
    variability: list[float]
    first_fit: float
    layers: list[float]
    numbers: dict[str, float]


@cache  # settings judge the same runs
def trained(name: str, seed: int) -> Trained:
    kind = KINDS[name]
    split = handwritten_digits(train_size=EXAMPLES, shape=kind.shape, seed=seed)
    model = kind.make(seed)
    optimizer = optim.SGD(model.parameters(), lr=kind.lr, momentum=0.9, weight_decay=DECAY)
    spec = dict(optim.spec(optimizer))
    at: list[int] = []
    values: list[float] = []
    fits: list[float] = []

    def read(step: int) -> None:
        value = neural_collapse(model, split.train, layers=()).variability
        at.append(step)
        values.append(value)
        if not fits and accuracy(model, *split.train) == 1:
            fits.append(value)

    curve = minibatch(
        model,
        split,
        optimizer,
        kind.steps,
        BATCH,
        seed,
        evaluate_every=kind.steps,
        schedule=LambdaLR(optimizer, optim.linear_decay(kind.steps)),
        on_step=lambda step, loss, batch: read(step) if step in MARKS else None,
    )
    if curve.diverged:
        return Trained(spec, [0], [math.nan], math.nan, [math.nan] * 2, {})
    read(kind.steps)
    end, other = neural_collapse(model, split.train), neural_collapse(model, split.test)
    numbers = {
        "NC1 at the end": end.nc1,
        "NC2 at the end": end.nc2,
        "NC3 at the end": end.nc3 or 0.0,
        "NC4 at the end": end.nc4 or 0.0,
        "variability on test data at the end": other.variability,
        "test accuracy": curve.last.test_accuracy,
    }
    layers = list(end.layers.values())
    if math.isclose(layers[-2], layers[-1], rel_tol=1e-9):
        layers.pop()  # an MLP's classifier reads its last activation, which then comes twice
    return Trained(spec, at, values, fits[0] if fits else math.nan, layers, numbers)
