"""Plots of a run as inline SVG: units on both axes, the earlier run in grey, readable in black and white."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thalweg.watch.readings import Finding, Reading

__all__ = ["Line", "draw"]

# A colour a run, grey for the one that is compared against; a dash a curve of the same run.
COLOURS = ("#8a8a8a", "#0b5fa5", "#b3541e", "#2f7d4f", "#6b4fa0", "#111111")
DASHES = ("-", "--", ":")
CURVES = 6  # more in one plot nobody can tell apart
# Names of findings are written across; closer than this share of the width they would lie on each other.
NAMED_APART = 0.025
# In a line of a plot's title.
LETTERS = 78


@dataclass(frozen=True)
class Line:
    """One curve: readings of one name; ``run`` and ``part`` count from 0 and choose colour and dash."""

    label: str
    readings: Sequence[Reading]
    run: int
    part: int = 0


def draw(
    title: str, unit: str, lines: Sequence[Line], findings: Sequence[Finding] = (), log: bool = False
) -> str:
    """An SVG element with up to six curves over optimizer steps.

    A curve that goes below zero is drawn whole, on plain axes, also where ``log`` is asked for.
    Findings are marked where they began, and named where the last name is not in the way.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    log = log and not any(one.value < 0 for line in lines[:CURVES] for one in line.readings)
    settings: Any = {
        "svg.fonttype": "path",
        "svg.hashsalt": "thalweg",
        "font.size": 9,
        "font.family": "DejaVu Sans",
    }
    with rc_context(settings):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for line in lines[:CURVES]:
            shown = [one for one in line.readings if one.finite and (not log or one.value > 0)]
            colour = COLOURS[line.run % len(COLOURS)]
            dash = DASHES[line.part % len(DASHES)]
            steps, values = [one.step for one in shown], [one.value for one in shown]
            mark = "o" if len(shown) < 3 else None
            axes.plot(
                steps, values, dash, color=colour, label=line.label, linewidth=1.5, marker=mark, markersize=3
            )
        steps_shown = [one.step for line in lines for one in line.readings]
        apart = NAMED_APART * (max(steps_shown, default=0) - min(steps_shown, default=0))
        named = -math.inf
        for finding in sorted(findings, key=lambda one: one.step):
            axes.axvline(finding.step, color="#b3261e", linewidth=0.8, linestyle=(0, (2, 2)))
            if finding.step < named + apart:
                continue
            named = finding.step
            axes.annotate(
                finding.name,
                (finding.step, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-2, -3),
                textcoords="offset points",
                rotation=90,
                fontsize=6.5,
                color="#b3261e",
                va="top",
                ha="right",
            )
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(unit)
        axes.set_title(textwrap.fill(title, LETTERS), fontsize=9.5, loc="left")
        axes.grid(alpha=0.25, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if len(lines) > 1:
            axes.legend(frameon=False, fontsize=7.5)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
