"""A picture of the loss over a plane: grey shades and labelled contours, checkpoints marked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from thalweg._core.checks import check_kind
from thalweg.probe._pictures import axes_of
from thalweg.probe.cost import costs
from thalweg.probe.loss_planes import LossPlane

__all__ = ["plot_plane"]

MARKS = "o^sDvP"
LEVELS = 9
SHADES = [f"{shade:.2f}" for shade in np.linspace(1, 0.5, LEVELS - 1)]
WIDE = 30.0  # ratio of largest to least loss from which levels are spaced evenly in the logarithm


@costs(0, 0)
def plot_plane(plane: LossPlane, *, names: Mapping[str, str] | None = None, unit: str = "loss") -> Any:
    """Contours of a plane; where the loss is not finite nothing is drawn.

    Levels are evenly spaced, in the logarithm where positive losses differ by a factor of 30 or more.

    Args:
        plane: as :func:`loss_plane` or :func:`random_plane` give it.
        names: anchor (``"first"``, ``"center"``, ...) to what to call it.
        unit: of the losses, for the scale.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: it is no plane, or no loss is finite.
    """
    check_kind("plane", plane, LossPlane, "a LossPlane, as loss_plane gives it")
    losses = np.ma.masked_invalid(plane.losses.numpy())
    if not losses.count():
        raise ValueError("plane must hold a finite loss, got none")
    low, high = float(losses.min()), float(losses.max())
    if high <= low:  # a flat plane has no contour
        high = low + (abs(low) or 1.0) * 1e-6
    spaced = np.geomspace if low > 0 and high / low >= WIDE else np.linspace
    levels = spaced(low, high, LEVELS)
    title = f"Loss over the plane: from {low:.3g} to {high:.3g} {unit}"
    label = f"({plane.unit})"
    figure, axes = axes_of(title, f"first direction {label}", f"second direction {label}", (5.4, 4.6))
    shades = axes.contourf(plane.x, plane.y, losses, levels=levels, colors=SHADES)
    lines = axes.contour(plane.x, plane.y, losses, levels=levels[1:-1], colors="black", linewidths=0.6)
    axes.clabel(lines, fontsize=6, fmt="%.3g")
    figure.colorbar(shades, ax=axes, label=unit, format="%.3g")
    for (anchor, (x, y)), mark in zip(plane.anchors.items(), MARKS, strict=False):
        name = (names or {}).get(anchor, anchor)
        axes.plot(x, y, mark, color="white", markeredgecolor="black", markersize=8, label=name, clip_on=False)
    # Beside the picture, where it hides no checkpoint.
    figure.legend(fontsize=8, loc="outside lower center", ncols=len(plane.anchors), frameon=False)
    axes.set_aspect("equal")
    return figure
