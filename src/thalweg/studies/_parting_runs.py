"""Pairs of runs that share a beginning and then part, and what lies between their ends."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.probe import LayerBarriers, LineCurvature, layer_barriers, line_curvature, loss_line
from thalweg.tasks import CNN, MLP, Split, cross_entropy, handwritten_digits, minibatch, noisy_clusters

STEPS, CNN_STEPS = 1500, 150


class Pair(NamedTuple):
    """Two runs that share a beginning, measured."""

    spec: dict[str, Any]
    line: LayerBarriers
    curvature: LineCurvature
    alone: dict[str, LineCurvature]
    errors: float


def loss_on(split: Split) -> Callable[[nn.Module], Tensor]:
    return lambda model: cross_entropy(model(split.train[0]), split.train[1])


def falling(optimizer: torch.optim.Optimizer, lr: float, done: int) -> LambdaLR:
    """The linear schedule of a run that has ``done`` steps behind it."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        group.pop("initial_lr", None)
    decay = optim.linear_decay(STEPS)
    return LambdaLR(optimizer, lambda step: decay(done + step))


@cache  # settings and arms share runs
def pair(seed: int, lr: float, parting: int) -> Pair | None:
    """None if a run diverged."""
    split = noisy_clusters(2000, 1000, features=20, classes=5, spread=2.5, noisy_labels=0.0, seed=seed)
    model = MLP((20, 128, 128, 5), seed=seed)
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    spec = dict(optim.spec(optimizer))
    if parting:
        schedule = falling(optimizer, lr, 0)
        minibatch(model, split, optimizer, parting, seed=seed, evaluate_every=STEPS, schedule=schedule)
    ends = []
    for branch in (1, 2):
        run, own = copy.deepcopy((model, optimizer))
        rest = falling(own, lr, parting)
        order = 10_000 * branch + seed
        curve = minibatch(run, split, own, STEPS - parting, seed=order, evaluate_every=STEPS, schedule=rest)
        if curve.diverged:
            return None
        ends.append(run)
    loss = loss_on(split)
    inputs, targets = split.train
    errors = loss_line(lambda m: (m(inputs).argmax(1) != targets).double().mean(), model, *ends)
    line = layer_barriers(loss, model, *ends, points=11)
    whole = loss_line(loss, model, *ends, points=21)
    return Pair(
        spec,
        LayerBarriers(whole, line.layers),
        line_curvature(loss, model, *ends),
        {layer: line_curvature(loss, model, *ends, layer=layer) for layer in line.layers},
        errors.barrier,
    )


def predicted_alone(curvature: LineCurvature, end: float) -> float:
    """Excess of a layer alone at the far end, told by loss, slope and curvature at the near one."""
    return curvature.losses[0] + curvature.slopes[0] + curvature.curvatures[0] / 2 - end


@cache
def convolutional(seed: int, lr: float) -> tuple[dict[str, Any], LayerBarriers] | None:
    split = handwritten_digits(1300, shape="image", seed=seed)
    ends = []
    spec: dict[str, Any] = {}
    for branch in (1, 2):
        model = CNN(width=8, seed=10_000 * branch + seed)
        optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        spec = dict(optim.spec(optimizer))
        schedule = LambdaLR(optimizer, optim.linear_decay(CNN_STEPS))
        curve = minibatch(model, split, optimizer, CNN_STEPS, seed=seed, schedule=schedule)
        if curve.diverged:
            return None
        ends.append(model)
    return spec, layer_barriers(loss_on(split), ends[0], *ends, norm_batches=[split.train[0]])
