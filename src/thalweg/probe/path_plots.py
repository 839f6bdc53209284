"""Pictures of losses along paths and of barriers by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thalweg._core.checks import check_kind
from thalweg.probe._pictures import STYLES, axes_of
from thalweg.probe.barriers import LayerBarriers
from thalweg.probe.cost import costs
from thalweg.probe.loss_paths import LossPath

__all__ = ["plot_barriers", "plot_paths"]

MOST_LAYERS = 40


@costs(0, 0)
def plot_paths(paths: Mapping[str, LossPath], *, unit: str = "loss") -> Any:
    """Loss along up to six paths; the first is the baseline, in grey.

    Args:
        paths: label to path.
        unit: of the losses, for the axis.

    Returns:
        A ``matplotlib.figure.Figure``; ``.savefig("paths.png")`` keeps it.

    Raises:
        ValueError: no path, more than six, or they have no labels.
    """
    if not isinstance(paths, Mapping):
        raise ValueError(f"paths must be a mapping of labels to paths, got {type(paths).__name__}")
    if not 1 <= len(paths) <= len(STYLES):
        raise ValueError(f"paths must hold 1 to {len(STYLES)} paths, got {len(paths)}")
    for label, path in paths.items():
        check_kind(f"paths[{label!r}]", path, LossPath, "a LossPath, as loss_line gives it")
    title = "Barrier: " + ", ".join(f"{path.barrier:.3g} ({label})" for label, path in paths.items())
    figure, axes = axes_of(title, "share t of the way from start to end", unit)
    for (label, path), style in zip(paths.items(), STYLES, strict=False):
        axes.plot(path.at, path.losses, label=label, linewidth=2, **style)
    axes.plot((0, 1), next(iter(paths.values())).ends, color="0.8", linewidth=0.8, zorder=0, label="chord")
    axes.legend(frameon=False, fontsize=8)
    return figure


@costs(0, 0)
def plot_barriers(barriers: LayerBarriers, *, unit: str = "loss") -> Any:
    """Barrier heights of up to 40 layers moved alone, under that of all together in grey.

    Args:
        barriers: as :func:`layer_barriers` gives them.
        unit: of the losses, for the axis.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        ValueError: more than 40 layers.
    """
    check_kind("barriers", barriers, LayerBarriers, "LayerBarriers, as layer_barriers gives them")
    heights = barriers.per_layer
    if len(heights) > MOST_LAYERS:
        raise ValueError(f"barriers must hold at most {MOST_LAYERS} layers, got {len(heights)}")
    highest = max(heights, key=lambda name: heights[name])
    title = (
        f"Barrier: {barriers.barrier:.3g} with all layers, at most {heights[highest]:.3g} alone ({highest})"
    )
    size = (6.0, 1.4 + 0.24 * len(heights))
    figure, axes = axes_of(title, f"barrier height ({unit})", "layer that moves", size)
    names = ["all", *heights]
    axes.barh(names, [barriers.barrier, *heights.values()], color=["0.7"] + ["#0b3d91"] * len(heights))
    axes.invert_yaxis()
    return figure
