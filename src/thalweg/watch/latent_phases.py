"""The phases that a stored run passed through: a hidden Markov model over its readings (arXiv 2308.09543)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby, pairwise

from thalweg._core.checks import check_kind
from thalweg.probe.phase_transitions import transition_map
from thalweg.probe.phases import fit_phases
from thalweg.watch.readings import Reading
from thalweg.watch.store import RunStore

__all__ = ["Phase", "PhaseTransition", "RunPhases", "phases_of_run"]

# Readings whose course tells phases, as far as a run has them.
READINGS = (
    "loss",
    "gradient norm",
    "weight norm",
    "test loss",
    "train accuracy",
    "test accuracy",
    "sharpness",
    "feature rank",
)
STRETCHES = 120  # points in time that are fitted
COVERED = 0.9  # share of the run that a reading must cover, since phases are those of what all cover
FLAT = 1e-6  # change over size that is rounding, of numbers computed in float32
LEAST = 24  # readings below which nothing can be told
STATES = range(1, 6)
RESTARTS = 3


@dataclass(frozen=True)
class Phase:
    """A stretch of the run, steps included, in one of the states that are numbered from 0."""

    state: int
    first: int
    last: int


@dataclass(frozen=True)
class PhaseTransition:
    """From one state to another.

    Attributes:
        steps: at which the run made it.
        probability: share of it among all times that the source was left.
        changes: reading to the difference of the states' means, in standard deviations over the run; the
            largest in size first.
    """

    source: int
    target: int
    steps: tuple[int, ...]
    probability: float
    changes: dict[str, float]


@dataclass(frozen=True)
class RunPhases:
    """What was fitted; ``readings`` are those that could be used, ``states`` how many fit best."""

    readings: tuple[str, ...]
    states: int
    phases: tuple[Phase, ...]
    transitions: tuple[PhaseTransition, ...]


def phases_of_run(store: RunStore, run: int) -> RunPhases:
    """Find the phases of a run from readings at 120 evenly spread times, however long it is.

    Of one run alone, more than five states would describe its noise; the number is the one with the least
    BIC. Readings that are positive throughout count by their logarithm. Takes about a second of processor
    time, and the first time as much again for loading what fits.

    Raises:
        ValueError: there are too few readings, or all are constant.
    """
    check_kind("store", store, RunStore, "a RunStore, such as RunStore(path)")
    courses = _courses(store, run)
    first = max(found[0].step for found in courses.values())
    last = min(found[-1].step for found in courses.values())
    count = min(STRETCHES, *(len(found) for found in courses.values()))
    ends = [first + (last - first) * (number + 1) / count for number in range(count)]
    table = {}
    for name, found in courses.items():
        begin = next(one.value for one in reversed(found) if one.step <= first)
        values = _even(store.samples(run, name, [first - 1, *ends]), begin)
        if max(values) - min(values) > FLAT * max(map(abs, values)):
            table[name] = [math.log(value) for value in values] if min(values) > 0 else values
    if not table:
        raise ValueError(f"run must have a reading that changes, got none of run {run}")
    phases = fit_phases({"run": table}, states=STATES, restarts=RESTARTS)
    bands, number, begin = [], 0, first
    for state, group in groupby(phases.states["run"]):
        number += len(list(group))
        bands.append(Phase(state, begin, round(ends[number - 1])))
        begin = bands[-1].last
    steps: dict[tuple[int, int], tuple[int, ...]] = {}
    for before, after in pairwise(bands):
        pair = before.state, after.state
        steps[pair] = (*steps.get(pair, ()), after.first)
    made = [
        PhaseTransition(one.source, one.target, steps[pair], one.probability, one.changes)
        for pair, one in transition_map(phases).items()
    ]
    return RunPhases(tuple(table), phases.count, tuple(bands), tuple(made))


def _courses(store: RunStore, run: int) -> dict[str, list[Reading]]:
    """Readings that can be used: enough of them, changing, over nearly all of the longest's steps."""
    courses, most = {}, 0
    for name in READINGS:
        found = store.overview(run, name, 4 * STRETCHES)
        most = max(most, len(found))
        if len(found) >= LEAST and len({one.value for one in found}) > 1:
            courses[name] = found
    if not courses:
        raise ValueError(
            f"run must have at least {LEAST} finite readings of one kind that changes, such as the loss; "
            f"the most that run {run} has are {most}"
        )
    spans = {name: found[-1].step - found[0].step for name, found in courses.items()}
    return {name: found for name, found in courses.items() if spans[name] >= COVERED * max(spans.values())}


def _even(stretches: list[list[float]], last: float) -> list[float]:
    """One value for each stretch: the middle of its readings, or the last before it."""
    values = []
    for inside in stretches:
        last = _middle(inside) if inside else last
        values.append(last)
    return values


def _middle(values: list[float]) -> float:
    """The median; of two the earlier, since their mean may lie on neither side of a jump between them."""
    order = sorted(range(len(values)), key=values.__getitem__)
    return values[min(order[(len(values) - 1) // 2], order[len(values) // 2])]
