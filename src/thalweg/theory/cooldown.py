"""Choosing a schedule by a predicted end: cooldown length, rate for another schedule, rate to go on with.

The predictions are the convex bound (arXiv 2501.18965) or any other function of a schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from thalweg._core.checks import check_choice, check_count, check_number, check_positive
from thalweg.theory._arrays import Floats, as_floats
from thalweg.theory.convex_bound import convex_schedule_bound

__all__ = ["BestCooldown", "best_cooldown", "continuation_factor", "cooldown_schedule", "transfer_rate"]

FRACTIONS = tuple(i / 20 for i in range(21))


@dataclass(frozen=True)
class BestCooldown:
    """Cooldown lengths by their predicted end.

    Attributes:
        fraction: of the run, with the lowest value.
        value: there.
        fractions, values: all that were tried.
    """

    fraction: float
    value: float
    fractions: tuple[float, ...]
    values: tuple[float, ...]


def cooldown_schedule(steps: int, fraction: float, shape: str = "linear") -> Floats:
    r"""Factors of a constant rate with a cooldown at the end (warmup-stable-decay, without the warm-up).

    The schedule of ``steps + 1`` steps falls over its last :math:`c = \lfloor f (T+1) \rfloor` (at most T) as
    :math:`1 - j/c` or :math:`1 - \sqrt{j/c}`, j from 1 to c; its last step, of rate 0, is left out.

    Args:
        steps: T, length of what is returned.
        fraction: f in [0, 1], of the run that is cooldown.
        shape: ``"linear"`` or ``"sqrt"``.

    Returns:
        (T,), in (0, 1], to be multiplied by the peak learning rate.

    Raises:
        ValueError: an argument is out of range.
    """
    check_count("steps", steps)
    check_number("fraction", fraction, 0, 1)
    check_choice("shape", shape, ("linear", "sqrt"))
    length = min(int(fraction * (steps + 1)), steps)
    if length == 0:
        return np.ones(steps)
    done = np.arange(1, length) / length
    falling = 1 - (done if shape == "linear" else np.sqrt(done))
    return np.concatenate([np.ones(steps + 1 - length), falling])


def _tuned_bound(schedule: Floats) -> float:
    return convex_schedule_bound(schedule).best_value


def best_cooldown(
    steps: int,
    value: Callable[[Floats], float] = _tuned_bound,
    *,
    shape: str = "linear",
    fractions: Sequence[float] = FRACTIONS,
) -> BestCooldown:
    """The cooldown length with the lowest predicted end.

    By the convex bound with the rate tuned for each length (the default), longer is better up to the whole
    run, with little to gain past half of it. At a rate that stays as it is, ask
    ``lambda s: convex_schedule_bound(rate * s).value``; with a fitted annealing law,
    ``lambda s: law.predict(rate * s, [steps]).loss[0]``.

    Args:
        steps: length of the run.
        value: from the factors (steps,) of :func:`cooldown_schedule` to a number, lower for better.
        shape: of the cooldown.
        fractions: of the run, each in [0, 1], to try.

    Raises:
        ValueError: an argument is out of range, or ``value`` gives NaN.
    """
    tried = tuple(float(fraction) for fraction in fractions)
    if not tried:
        raise ValueError("fractions must hold at least one fraction of the run, got none")
    values = tuple(float(value(cooldown_schedule(steps, fraction, shape))) for fraction in tried)
    for fraction, found in zip(tried, values, strict=True):
        if np.isnan(found):
            raise ValueError(f"value must give a number for every schedule, got NaN at fraction {fraction:g}")
    best = min(range(len(tried)), key=values.__getitem__)
    return BestCooldown(tried[best], values[best], tried, values)


def transfer_rate(rate: float, tuned: Any, planned: Any) -> float:
    r"""Best learning rate of a schedule from that of another, by the ratio of their bounds' best rates.

    :math:`\gamma^*_{planned} / \gamma^*_{tuned}` of the convex bound (arXiv 2501.18965); the unknown D and G
    cancel.

    Args:
        rate: best peak learning rate under ``tuned``.
        tuned, planned: (steps,) factors of the two schedules, each with the last above 0; lengths may differ.

    Returns:
        The rate by which to multiply ``planned``.

    Raises:
        ValueError: ``rate`` is not above 0, or a schedule is not one of :func:`convex_schedule_bound`.
    """
    check_positive("rate", rate)
    return rate * convex_schedule_bound(planned).best_factor / convex_schedule_bound(tuned).best_factor


def continuation_factor(first: Any, further: Any, *, tuned: Any = None) -> float:
    """By how much to scale the rate when a run goes on past its planned end (arXiv 2501.18965).

    The factor of ``further`` that minimises the convex bound at the new end, with the steps of ``first`` as
    they were taken, at the rate that was best for ``tuned``. The unknown D and G cancel.

    Args:
        first: (n,) factors of the steps already taken, not scaled by the learning rate.
        further: (m,) factors of those to come, on the same scale; the last above 0.
        tuned: (k,) factors of the schedule for which the learning rate was tuned; ``first`` for None. Where
            a cooled-down run was tuned and its constant part is gone on with, give that run's.

    Returns:
        Between 0.001 and 10.

    Raises:
        ValueError: a rate is negative, not finite, or 0 where it must not be.
    """
    before = as_floats("first", first, low=0)
    after = as_floats("further", further, low=0)
    peak = convex_schedule_bound(before if tuned is None else tuned).best_factor

    def end(exponent: float) -> float:
        return convex_schedule_bound(peak * np.concatenate([before, np.exp(exponent) * after])).value

    grid = np.log(10) * np.linspace(-3, 1, 17)
    lowest = int(np.argmin([end(exponent) for exponent in grid]))
    around = grid[max(0, lowest - 1)], grid[min(len(grid) - 1, lowest + 1)]
    return float(np.exp(minimize_scalar(end, bounds=around, method="bounded", options={"xatol": 1e-6}).x))
