"""Runs of the small GPT under several learning-rate schedules, for the annealing law (arXiv 2408.11029)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from thalweg import optim
from thalweg.studies._language import train
from thalweg.tasks import Curve
from thalweg.theory import cooldown_schedule

WARMUP, EVERY = 50, 20
PEAK = 4e-3


def rates(schedule: str, steps: int) -> np.ndarray:
    """Learning rate of every step, with the warm-up."""
    if schedule == "cooldown over a fifth":
        rising = np.minimum(1, np.arange(1, steps + 1) / WARMUP)
        return PEAK * rising * cooldown_schedule(steps, 0.2)
    shape = optim.cosine if schedule == "cosine" else optim.linear_decay
    return PEAK * np.array([shape(steps, WARMUP)(step) for step in range(steps)])


@cache  # all arms judge the same runs
def measured(schedule: str, seed: int, steps: int) -> tuple[Curve, dict[str, Any]]:
    factors = rates(schedule, steps) / PEAK

    def make(model: Any) -> optim.Descent:
        return optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0)

    # The scheduler also asks for the factor behind the last step.
    return train(make, lambda step: float(factors[min(step, steps - 1)]), seed, steps, EVERY)


def losses(schedule: str, seed: int, steps: int) -> np.ndarray:
    return np.array(measured(schedule, seed, steps)[0].test_loss[1:])
