"""Which layer stands in the way: loss barriers with one layer at a time interpolated (arXiv 2406.16300)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from thalweg.probe._checkpoints import Checkpoint, distance, layer_parameters
from thalweg.probe._terrain import LossOf, terrain
from thalweg.probe.cost import costs
from thalweg.probe.loss_paths import MEMORY, LossPath, checked_ends, grid

__all__ = ["LayerBarriers", "layer_barriers"]

POINTS = 11


@dataclass(frozen=True)
class LayerBarriers:
    """Barriers of the whole line and of each layer alone, in units of the loss.

    Attributes:
        whole: the path on which everything moves.
        layers: layer to the path on which it moves alone while the rest stays at the start; the chord is that
            of the two checkpoints.
    """

    whole: LossPath
    layers: dict[str, LossPath]

    @property
    def barrier(self) -> float:
        """Height of the barrier with all layers moving."""
        return self.whole.barrier

    @property
    def per_layer(self) -> dict[str, float]:
        """Layer to the height of its barrier."""
        return {name: path.barrier for name, path in self.layers.items()}


@costs(POINTS * 10, 0, memory=MEMORY)
def layer_barriers(
    loss_fn: LossOf,
    model: nn.Module,
    start: Checkpoint,
    end: Checkpoint,
    *,
    layers: Iterable[str] | None = None,
    points: int = POINTS,
    norm_batches: Iterable[Any] | None = None,
) -> LayerBarriers:
    r"""Barrier of the line between two checkpoints, whole and layer by layer (arXiv 2406.16300).

    With one layer alone at :math:`(1-t)\,\theta_\mathrm{start} + t\,\theta_\mathrm{end}` and the rest at the
    start: :math:`\max_t [L(t) - (1-t) L_\mathrm{start} - t L_\mathrm{end}]`, with the losses of the two
    checkpoints themselves. From the other end the heights differ: swap ``start`` and ``end``.

    Costs ``points`` forward passes for the whole line and as many for each layer (the declared cost is that
    of nine layers).

    Args:
        layers: names of modules, each moved with everything below it (``"blocks.0"``); by default the modules
            that hold parameters of their own. A tied weight belongs to the first of its names.
        loss_fn, model, start, end, points, norm_batches: as in :func:`loss_line`.

    Raises:
        ValueError: as :func:`loss_line`, or an unknown layer.
    """
    with terrain(loss_fn, model, norm_batches, start=start, end=end) as ground:
        parts = layer_parameters(ground.model, layers)
        steps = grid(points)
        losses = tuple(ground.loss(1 - t, t) for t in steps)
        ends = checked_ends(losses[0], losses[-1])
        whole = LossPath(steps, losses, ends, distance(ground.points, ground.params))
        paths = {}
        for layer, names in parts.items():
            # At t = 0 everything is at the start, which has been read.
            alone = (losses[0], *(ground.loss(1 - t, t, only=names) for t in steps[1:]))
            moved = [name for name in names if name in ground.params]
            paths[layer] = LossPath(steps, alone, ends, distance(ground.points, moved))
    return LayerBarriers(whole, paths)
