"""What the pictures of this room share: figures without global state, lines that differ without colour."""

from __future__ import annotations

import textwrap
from typing import Any

# The first is the baseline's. Darkness and dash tell the others apart in black and white.
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "0.6", "linestyle": "-"},
    {"color": "#0b3d91", "linestyle": "-"},
    {"color": "black", "linestyle": "--"},
    {"color": "#b3541e", "linestyle": "-."},
    {"color": "0.25", "linestyle": ":"},
    {"color": "#2f7d4f", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
)


def axes_of(title: str, x: str, y: str, size: tuple[float, float] = (6.0, 3.8)) -> tuple[Any, Any]:
    """Figure and axes with a title that says the finding and labels that say the units."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title("\n".join(textwrap.wrap(title, 72)), fontsize=9.5, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
