"""What the study of the convex bound trains: a small network under several schedules and rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.tasks import MLP, Split, noisy_teacher
from thalweg.theory import cooldown_schedule

SHORT, LONG, BATCH, EVERY = 400, 1600, 64, 20
RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)


def cosine(steps: int) -> np.ndarray:
    return np.array([optim.cosine(steps)(step) for step in range(steps)])


SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    "constant": np.ones,
    "inverse root": lambda steps: np.arange(1, steps + 1) ** -0.5,
    "cooldown 0.1": partial(cooldown_schedule, fraction=0.1),
    "cooldown 0.2": partial(cooldown_schedule, fraction=0.2),
    "cooldown 0.5": partial(cooldown_schedule, fraction=0.5),
    "linear": partial(cooldown_schedule, fraction=1.0),
    "cosine": cosine,
}


@cache
def examples(seed: int) -> Split:
    return noisy_teacher(samples=LONG * BATCH, test_samples=4000, seed=seed)


@cache
def trained(schedule: str, steps: int, seed: int, lr: float) -> tuple[dict[str, Any], list[float]]:
    """Spec and test loss every 20 steps; NaN at the end of a run that diverged."""
    data, factors = examples(seed), SCHEDULES[schedule](steps)
    model = MLP((32, 128, 128, 10), seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    spec = dict(optim.spec(optimizer))
    # The scheduler also asks for the factor behind the last step.
    schedule_ = LambdaLR(optimizer, lambda step: float(factors[min(step, steps - 1)]))
    losses = []
    for step, (x, y) in enumerate(zip(*(part.split(BATCH) for part in data.train), strict=True), start=1):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule_.step()
        if step % EVERY == 0:
            with torch.no_grad():
                losses.append(functional.cross_entropy(model(data.test[0]), data.test[1]).item())
        if step == steps:
            break
    return spec, losses


def best_rate(schedule: str, steps: int, seed: int) -> float:
    ends = [trained(schedule, steps, seed, lr)[1][-1] for lr in RATES]
    return RATES[int(np.argmin([end if math.isfinite(end) else math.inf for end in ends]))]
