"""Groups of runs that differ in nothing but the seed, and the phases of their weight statistics."""

from __future__ import annotations

from functools import cache
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from thalweg import optim
from thalweg.probe import Detours, Phases, detours, fit_phases, weight_statistics
from thalweg.tasks import MLP, Curve, Split, full_batch, minibatch, modular_arithmetic

RUNS, STATES, ARRIVED = 16, 6, 0.95
P, STEPS = 31, 650
PARITY_BITS, PARITY_STEPS = 20, 600


class Group(NamedTuple):
    """Sixteen runs, their readings, and when each arrived."""

    spec: dict[str, Any]
    readings: dict[str, dict[str, list[float]]]
    arrivals: dict[str, float]
    steps: tuple[int, ...]
    accuracy: list[float]


def sparse_parity(seed: int) -> Split:
    source = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (1500, PARITY_BITS), generator=source) * 2.0 - 1
    odd = (bits[:, :3].prod(dim=1) > 0).long()
    return Split((bits[:1000], odd[:1000]), (bits[1000:], odd[1000:]), 2, "parity of 3 bits")


@cache  # settings and arms share runs
def group(parity: bool, norm: str | None, seed: int, lr: float) -> Group:
    specs, readings, arrivals, curves = [], {}, {}, []
    for number in range(RUNS):
        spec, curve, rows = trained(parity, norm, 100 * seed + number, lr)
        first = curve.first_step(lambda row: row.test_accuracy >= ARRIVED)
        specs.append(spec)
        curves.append(curve)
        arrivals[str(number)] = float(PARITY_STEPS if parity else STEPS) if first is None else float(first)
        readings[str(number)] = {name: [row[name] for row in rows] for name in rows[0]}
    accuracy = [median(column) for column in zip(*(curve.test_accuracy for curve in curves), strict=True)]
    return Group(specs[0], readings, arrivals, curves[0].steps, accuracy)


def trained(
    parity: bool, norm: str | None, seed: int, lr: float
) -> tuple[dict[str, Any], Curve, list[dict[str, float]]]:
    rows: list[dict[str, float]] = []
    model = MLP((PARITY_BITS, 100, 2) if parity else (2 * P, 96, 96, P), norm=norm, seed=seed)

    def on_step(step: int, loss: Tensor, batch: Any) -> None:
        if step % 10 == 0:
            rows.append(weight_statistics(model).values)

    optimizer: torch.optim.Optimizer
    if parity:
        optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01)
        split, steps = sparse_parity(seed), PARITY_STEPS
        curve = minibatch(model, split, optimizer, steps, 32, seed, evaluate_every=10, on_step=on_step)
    else:
        optimizer = optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=2.0)
        split = modular_arithmetic(P, "+", 0.65, seed=seed)
        curve = full_batch(model, split, optimizer, STEPS, evaluate_every=10, on_step=on_step)
    return dict(optim.spec(optimizer)), curve, rows


@cache
def phased(parity: bool, norm: str | None, seed: int, lr: float) -> tuple[Phases, Detours]:
    made = group(parity, norm, seed, lr)
    phases = fit_phases(made.readings, states=range(1, STATES + 1), restarts=3)
    return phases, detours(phases, made.arrivals)


def single_statistic(made: Group) -> float:
    """Share of variance that the best mean of one reading explains of runs left out."""
    arrivals = np.array(list(made.arrivals.values()))
    best = -np.inf
    for name in next(iter(made.readings.values())):
        means = np.array([fmean(readings[name]) for readings in made.readings.values()])
        wrong, scattered = 0.0, 0.0
        for left in range(RUNS):
            others = np.arange(RUNS) != left
            base = np.polyfit(means[others] - means[left], arrivals[others], 1)[1]
            wrong += (arrivals[left] - base) ** 2
            scattered += (arrivals[left] - arrivals[others].mean()) ** 2
        best = max(best, 1 - wrong / max(scattered, 1e-12))
    return float(best)
