"""The picture of a study: median curves of every arm, the baseline in grey, the finding as the title."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from thalweg._core.checks import check_choice
from thalweg.studies.evidence import check_evidence

__all__ = ["finding", "plot_evidence"]

# Dark enough, and different enough in dash, to tell apart without colour.
STYLES = {
    "baseline": [("0.6", "-")],
    "method": [("#0b3d91", "-")],
    "reference": [("0.25", "--"), ("0.25", ":"), ("0.25", "-.")],
}
MOST_LINES = 5


def finding(evidence: Mapping[str, Any], setting: str | None = None) -> str:
    """One line: who against whom, the effect with its range, and the verdict."""
    one = evidence["settings"][setting or evidence["headline"]]
    baseline, method = (arm["name"] for arm in one["arms"][:2])
    formula = one["formula"].replace("baseline", baseline).replace("method", method)
    low, high = one["spread"]
    return f"{formula} = {one['effect']:.3g} (from {low:.3g} to {high:.3g}): {one['verdict']}"


def plot_evidence(evidence: Mapping[str, Any], path: Path | str, setting: str | None = None) -> Path:
    """Draw one setting, by default the headline, as PNG or SVG by the ending of ``path``.

    Lines are medians over the seeds; the band runs from the least to the largest of the arms compared.

    Raises:
        ValueError: malformed evidence, an unknown setting, or another ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = Path(path)
    check_choice("ending of path", path.suffix.lower(), (".png", ".svg"))
    check_evidence(evidence, f"evidence of {evidence.get('paper')}")
    setting = (
        evidence["headline"] if setting is None else check_choice("setting", setting, evidence["settings"])
    )
    one = evidence["settings"][setting]

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    styles = {role: iter(list(choices)) for role, choices in STYLES.items()}
    for arm in one["arms"][:MOST_LINES]:
        colour, dash = next(styles[arm["role"]])
        x, middle, low, high = (_floats(arm["curve"][name]) for name in ("x", "median", "low", "high"))
        if arm["role"] != "reference":
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        width = 1.2 if arm["role"] == "reference" else 2.0
        axes.plot(x, middle, color=colour, linestyle=dash, linewidth=width, label=arm["name"])
    if one["log_y"]:
        axes.set_yscale("log")
    axes.set_xlabel(one["axes"][0])
    axes.set_ylabel(one["axes"][1])
    axes.set_title(
        "\n".join(textwrap.wrap(f"{evidence['paper']}, {setting}: {finding(evidence, setting)}", 78)),
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    # No date inside: the same evidence draws the same file.
    figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)
    return path


def _floats(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
