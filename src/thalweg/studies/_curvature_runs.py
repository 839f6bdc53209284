"""Runs of the loss-curvature study: a ladder of learning rates from a sharp start, a long run at the edge."""

from __future__ import annotations

import math
from functools import cache
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.probe import preconditioned_sharpness, sharpness, stability_limit
from thalweg.tasks import MLP, cross_entropy, minibatch, noisy_clusters

RUNGS = tuple(2.0**power for power in range(11))  # learning rates in units of 2 / sharpness at the start
STEPS, BATCH, WARM_UP = 600, 128, 200
TRAINED = 0.1  # nats
EARLY = (20, 30, 40, 50)
EDGE_STEPS, EDGE_LAST, EDGE_EVERY = 2000, 500, 50

Ladder = tuple[dict[str, Any], list[float], list[float]]


def network(arm: str, seed: int) -> MLP:
    """He weights times two, unless the arm is called "He start"; with LayerNorm if it is called so."""
    norm = "layer" if arm.endswith("LayerNorm") else None
    model = MLP((20, 64, 64, 64, 64, 5), init="he", norm=norm, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2 and arm != "He start":
                p.mul_(2)
    return model


def rising(step: int) -> float:
    return min(1.0, (step + 1) / WARM_UP)


def constant(step: int) -> float:
    return 1.0


@cache  # settings share arms
def climbed(arm: str, seed: int) -> Ladder:
    """Spec, and at each rung the final training loss and sharpness x learning rate / 2 early on.

    The second is measured for "sharp start" only, at the steps EARLY; infinite if it diverged by then.
    """
    task = noisy_clusters(samples=1000, test_samples=10, noisy_labels=0.0, seed=seed)
    start = network("sharp start", seed)
    unit = 2 / sharpness(lambda: cross_entropy(start(task.train[0]), task.train[1]), start.parameters()).top
    spec: dict[str, Any] = {}
    losses, excesses = [], []
    for rung in RUNGS:
        model, lr = network(arm, seed), rung * unit
        optimizer = optim.SGD(model.parameters(), lr=lr)
        spec = spec or dict(optim.spec(optimizer))
        early: list[float] = []

        def loss(model: MLP = model) -> Tensor:
            return cross_entropy(model(task.train[0]), task.train[1])

        def look(step: int, *_: Any, model=model, loss=loss, early=early, lr=lr) -> None:
            if step in EARLY and arm == "sharp start":
                finite = bool(loss().isfinite())
                early.append(sharpness(loss, model.parameters()).top * lr / 2 if finite else math.inf)

        rise = LambdaLR(optimizer, rising if arm.endswith("warm-up") else constant)
        curve = minibatch(
            model, task, optimizer, STEPS, BATCH, seed, evaluate_every=STEPS, on_step=look, schedule=rise
        )
        losses.append(math.inf if curve.diverged else curve.last.train_loss)
        excesses.append(median(early) if len(early) == len(EARLY) else math.inf)
    return spec, losses, excesses


@cache  # both arms look at the same run
def at_the_edge(name: str, lr: float, seed: int) -> tuple[dict[str, Any], list[int], list[float]]:
    """Spec, and sharpness over the optimizer's limit at some steps; a diverged run ends early."""
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 5, generator=source, dtype=torch.float64)
    targets = inputs.sum(1, keepdim=True).sin()
    model = MLP((5, 40, 40, 1), activation="tanh", seed=seed).double()
    params = list(model.parameters())
    optimizer = optim.AdamW(params, lr=lr, weight_decay=0.0) if name == "Adam" else optim.SGD(params, lr=lr)
    spec = dict(optim.spec(optimizer))

    def loss() -> Tensor:
        return (model(inputs) - targets).square().mean() / 2

    steps: list[int] = []
    ratios: list[float] = []
    warm = None
    for step in range(1, EDGE_STEPS + 1):
        optimizer.zero_grad()
        found = loss()
        if not bool(found.isfinite()):
            break
        found.backward()
        optimizer.step()
        if step % (EDGE_EVERY if step > EDGE_STEPS - EDGE_LAST else 4 * EDGE_EVERY) == 0:
            reading = preconditioned_sharpness(
                loss, params, optimizer, iterations=60, tol=1e-3, warm_start=warm
            )
            warm = reading.vectors
            steps.append(step)
            ratios.append(reading.top / stability_limit(optimizer))
    return spec, steps or [1], ratios or [math.inf]


def settled(steps: list[int], ratios: list[float]) -> float:
    """Median over the last steps; NaN of a run that did not get there."""
    if steps[-1] < EDGE_STEPS:
        return math.nan
    return median(ratio for step, ratio in zip(steps, ratios, strict=True) if step > EDGE_STEPS - EDGE_LAST)
