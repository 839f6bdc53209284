"""Detours: phases that some runs pass through and others do not, and what they cost (arXiv 2308.09543)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

from thalweg._core.checks import check_number
from thalweg.probe._series import Array
from thalweg.probe.cost import costs
from thalweg.probe.phases import Phases

__all__ = ["Detours", "PhaseCost", "detours"]


@dataclass(frozen=True)
class PhaseCost:
    """What a point in time more in a phase goes with.

    Attributes:
        slope: change of the outcome a point, in its unit, against the mean of the other phases where all runs
            are equally long.
        p_value: two-sided, of no such change, if errors are normal.
    """

    slope: float
    p_value: float


@dataclass(frozen=True)
class Detours:
    """Where runs part.

    Attributes:
        visitors: state to the runs that pass through it.
        optional: states that some runs visit and some do not.
        courses: order of states, without repeats, to the runs that take it; the commonest first.
        costs: state to its :class:`PhaseCost`; empty without an outcome.
        slow: optional states in which more time goes with a significantly larger outcome: the detours.
        explained: share of the outcome's variance that the time spent in each state explains (R squared);
            NaN without an outcome, and where there are as many independent counts as runs.
        predicted: the same for each run from a fit to the others: negative if worse than the others' mean.
    """

    visitors: dict[int, tuple[str, ...]]
    optional: tuple[int, ...]
    courses: dict[tuple[int, ...], tuple[str, ...]]
    costs: dict[int, PhaseCost]
    slow: tuple[int, ...]
    explained: float
    predicted: float


@costs(0, 0, memory="a few numbers a run")
def detours(
    phases: Phases, outcome: Mapping[str, float] | None = None, *, significance: float = 0.001
) -> Detours:
    r"""Find the optional phases, and regress an outcome on the time spent in each phase (arXiv 2308.09543).

    Ordinary least squares with an intercept on the counts of :meth:`Phases.occupancy`; of the solutions, the
    shortest, since the counts of equally long runs add up to the same number. With few runs for many states
    ``explained`` is flattering and ``predicted`` is not.

    Args:
        phases: as :func:`fit_phases` gives them.
        outcome: run to a number of which less is better, such as the step at which it converged.
        significance: largest p-value of a detour; the paper's is 0.001.

    Raises:
        ValueError: a run has no outcome or one that is not finite, or there are fewer than 3 runs.
    """
    check_number("significance", significance, 0, 1)
    runs = list(phases.states)
    visitors = {
        state: tuple(run for run in runs if state in phases.states[run]) for state in range(phases.count)
    }
    optional = tuple(state for state, those in visitors.items() if 0 < len(those) < len(runs))
    courses: dict[tuple[int, ...], tuple[str, ...]] = {}
    for run in runs:
        course = phases.course(run)
        courses[course] = (*courses.get(course, ()), run)
    courses = dict(sorted(courses.items(), key=lambda item: -len(item[1])))
    if outcome is None:
        return Detours(visitors, optional, courses, {}, (), float("nan"), float("nan"))

    missing = [run for run in runs if run not in outcome]
    if missing:
        raise ValueError(f"outcome must have a number for every run, got none for {missing[0]!r}")
    results = np.array([float(outcome[run]) for run in runs])
    if not np.isfinite(results).all():
        worst = runs[int(np.argmin(np.isfinite(results)))]
        raise ValueError(f"outcome of run {worst!r} must be finite, got {outcome[worst]}")
    if len(runs) < 3:
        raise ValueError(f"phases must hold at least 3 runs to regress on them, got {len(runs)}")
    counts = np.array([phases.occupancy(run) for run in runs], dtype=np.float64)
    slopes, p_values, explained = _regression(counts, results)
    prices = {state: PhaseCost(float(slopes[state]), float(p_values[state])) for state in visitors}
    slow = tuple(s for s in optional if prices[s].slope > 0 and prices[s].p_value <= significance)
    return Detours(visitors, optional, courses, prices, slow, explained, _predicted(counts, results))


def _fit(counts: Array, results: Array) -> tuple[Array, Array, Array]:
    """Means of the counts, shortest slopes, and the pseudo-inverse of the centred counts' Gram matrix."""
    center = counts.mean(axis=0)
    gram = np.linalg.pinv((counts - center).T @ (counts - center), rcond=1e-10, hermitian=True)
    return center, gram @ (counts - center).T @ (results - results.mean()), gram


def _regression(counts: Array, results: Array) -> tuple[Array, Array, float]:
    center, slopes, gram = _fit(counts, results)
    residual = results - results.mean() - (counts - center) @ slopes
    total, rest = float(((results - results.mean()) ** 2).sum()), float((residual**2).sum())
    freedom = len(results) - 1 - np.linalg.matrix_rank(counts - center)
    if total == 0 or freedom < 1:
        return slopes, np.full(len(slopes), np.nan), float("nan")
    errors = np.sqrt(np.maximum(np.diag(gram) * rest / freedom, 0))
    sure = np.where(slopes == 0, 0.0, np.inf)  # where nothing is left to err by
    ratio = np.divide(np.abs(slopes), errors, out=sure, where=errors > 0)
    return slopes, 2 * stdtr(freedom, -ratio), 1 - rest / total


def _predicted(counts: Array, results: Array) -> float:
    wrong, scattered = 0.0, 0.0
    for left in range(len(results)):
        others = np.arange(len(results)) != left
        center, slopes, _ = _fit(counts[others], results[others])
        mean = results[others].mean()
        wrong += (results[left] - mean - (counts[left] - center) @ slopes) ** 2
        scattered += (results[left] - mean) ** 2
    return float(1 - wrong / scattered) if scattered > 0 else float("nan")
