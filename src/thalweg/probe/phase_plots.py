"""A picture of phases: which state each run is in when, and how often one follows another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg._core.checks import check_kind
from thalweg.probe.cost import costs
from thalweg.probe.optional_phases import detours
from thalweg.probe.phases import Phases

__all__ = ["plot_phases"]

MOST_RUNS = 60


@costs(0, 0)
def plot_phases(
    phases: Phases, *, outcome: Mapping[str, float] | None = None, unit: str = "optimizer step"
) -> Any:
    """The course of every run as a bar of numbered states, beside the map of transitions.

    Shades go from light to dark in the order of the states, and each stretch carries its number, so that it
    reads in black and white.

    Args:
        phases: as :func:`fit_phases` gives them.
        outcome: run to a number, such as the step at which it converged, marked on its bar, by which the
            runs are sorted; NaN for one that never did.
        unit: of the steps, for the axis.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: more than 60 runs, or one without an outcome.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    check_kind("phases", phases, Phases, "Phases, as fit_phases gives them")
    runs = list(phases.states)
    if len(runs) > MOST_RUNS:
        raise ValueError(f"phases must hold at most {MOST_RUNS} runs to draw, got {len(runs)}")
    if outcome is not None:
        missing = [run for run in runs if run not in outcome]
        if missing:
            raise ValueError(f"outcome must have a number for every run, got none for {missing[0]!r}")
        # One that is NaN, of a run that did not converge, has no mark and comes last.
        runs.sort(key=lambda run: math.inf if math.isnan(outcome[run]) else outcome[run])
    height = 1.8 + max(1.6, 0.16 * len(runs))
    figure = Figure(figsize=(9.0, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    course, chart = figure.subplots(1, 2, width_ratios=(5, 3))
    _draw_courses(course, phases, runs)
    if outcome is not None:
        course.plot(
            [outcome[run] for run in runs],
            range(len(runs)),
            "k|",
            markersize=7,
            markeredgewidth=2,
            label="outcome",
        )
        course.legend(fontsize=7, loc="lower right")
    course.set_xlabel(unit)
    course.set_ylabel("run")
    optional = ", ".join(map(str, detours(phases).optional))
    course.set_title(
        f"{phases.count} phases; {f'only some runs visit {optional}' if optional else 'all runs visit each'}",
        fontsize=9.5,
        loc="left",
    )
    _draw_map(chart, phases)
    return figure


def _shade(state: int, count: int) -> str:
    return f"{0.95 - 0.5 * state / max(count - 1, 1):.3f}"


def _draw_courses(axes: Any, phases: Phases, runs: list[str]) -> None:
    for row, run in enumerate(runs):
        states, steps = phases.states[run], list(phases.steps[run])
        ends = [*steps[1:], steps[-1] + steps[-1] - steps[-2]]
        starts = [n for n in range(len(states)) if n == 0 or states[n] != states[n - 1]]
        for begin, after in zip(starts, [*starts[1:], len(states)], strict=True):
            state, left, right = states[begin], steps[begin], ends[after - 1]
            shade = _shade(state, phases.count)
            axes.barh(row, right - left, left=left, height=0.9, color=shade, edgecolor="white", linewidth=0.5)
            if (after - begin) / len(states) > 0.02:
                axes.text((left + right) / 2, row, str(state), fontsize=5.5, ha="center", va="center")
    axes.set_yticks(range(len(runs)), runs, fontsize=5.5)
    axes.set_ylim(len(runs) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_map(axes: Any, phases: Phases) -> None:
    counts = np.zeros((phases.count, phases.count), dtype=int)
    for states in phases.states.values():
        np.add.at(counts, (states[:-1], states[1:]), 1)
    np.fill_diagonal(counts, 0)
    axes.imshow(counts, cmap="Greys", vmin=0, vmax=2 * max(1, counts.max()))
    for (source, target), count in np.ndenumerate(counts):
        if count:
            axes.text(target, source, str(count), ha="center", va="center", fontsize=8)
    axes.set_xticks(range(phases.count))
    axes.set_yticks(range(phases.count))
    axes.set_xlabel("to phase (number)")
    axes.set_ylabel("from phase (number)")
    axes.set_title("Transitions made (count)", fontsize=9.5, loc="left")
