"""Loss along the straight line or a bent curve between two checkpoints (arXiv 2406.16300, 1802.10026)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from thalweg._core.checks import check_count
from thalweg.probe._checkpoints import Checkpoint, distance
from thalweg.probe._terrain import LossOf, terrain
from thalweg.probe.cost import costs

__all__ = ["LossPath", "loss_curve", "loss_line"]

POINTS = 25
MEMORY = "one copy of the weights beside the checkpoints"


@dataclass(frozen=True)
class LossPath:
    """Losses along a path from a start (t = 0) to an end (t = 1), in units of the loss.

    Attributes:
        at: the values of t, rising from 0 to 1.
        losses: the loss at each; may hold NaN or infinity between the ends.
        ends: losses of the two checkpoints, which the chord joins. They are those at t = 0 and 1, unless only
            a part of the weights moves.
        distance: Euclidean length between start and end over all parameters that move.
    """

    at: tuple[float, ...]
    losses: tuple[float, ...]
    ends: tuple[float, float]
    distance: float

    @property
    def excess(self) -> tuple[float, ...]:
        """Loss above the chord at each t; infinite where the loss is not finite."""
        low, high = self.ends
        above = [loss - (1 - t) * low - t * high for t, loss in zip(self.at, self.losses, strict=True)]
        return tuple(value if math.isfinite(value) else math.inf for value in above)

    @property
    def barrier(self) -> float:
        """The largest excess, at least 0 for a whole path: 0 means that the loss stays under the chord."""
        return max(self.excess)

    @property
    def barrier_at(self) -> float:
        """The t of the barrier."""
        excess = self.excess
        return self.at[excess.index(max(excess))]


def grid(points: int) -> tuple[float, ...]:
    check_count("points", points, 3)
    return tuple(index / (points - 1) for index in range(points))


def checked_ends(start: float, end: float) -> tuple[float, float]:
    for name, loss in (("start", start), ("end", end)):
        if not math.isfinite(loss):
            raise ValueError(f"loss_fn must be finite at the {name} of a path, got {loss}")
    return start, end


@costs(POINTS, 0, memory=MEMORY)
def loss_line(
    loss_fn: LossOf,
    model: nn.Module,
    start: Checkpoint,
    end: Checkpoint,
    *,
    points: int = POINTS,
    norm_batches: Iterable[Any] | None = None,
) -> LossPath:
    r"""Loss along the straight line between two checkpoints, and its barrier (arXiv 2406.16300).

    With :math:`\theta(t) = (1-t)\,\theta_\mathrm{start} + t\,\theta_\mathrm{end}` the barrier is
    :math:`\max_t [L(\theta(t)) - (1-t) L(\theta(0)) - t L(\theta(1))]`: above the chord, not above the
    higher end. A few points miss a narrow ridge. Two runs from different initialisations have a
    barrier merely because their units are in another order.

    The model runs in evaluation mode without gradients, and each point sees the same random numbers. Weights,
    buffers, ``training`` flags and the global random state return, also after an error; the weights as the
    very same storage. Floating buffers are interpolated, others are those of ``start``; tied weights count
    once.

    Args:
        loss_fn: takes the model (bare: without DDP or torch.compile around it), returns the scalar loss, or
            any other number, such as an error rate.
        model: the function that the weights belong to.
        start, end: models or state dicts that fit ``model``; ``model`` itself may be one of them.
        points: values of t, evenly spaced, at least 3.
        norm_batches: inputs (tensors, tuples of positional or mappings of keyword arguments), read at every
            point to recompute the running statistics of batch normalisation: with one batch they are those of
            that batch, with several the mean over them. Needed where the model keeps such statistics; ``()``
            interpolates the stored ones instead.

    Raises:
        ValueError: a checkpoint does not fit, or lacks statistics that are to be interpolated;
            ``norm_batches`` is missing or can be read only once; the loss is no scalar, or not finite at an
            end.
    """
    with terrain(loss_fn, model, norm_batches, start=start, end=end) as ground:
        steps = grid(points)
        losses = tuple(ground.loss(1 - t, t) for t in steps)
        ends = checked_ends(losses[0], losses[-1])
        return LossPath(steps, losses, ends, distance(ground.points, ground.params))


@costs(POINTS, 0, memory=MEMORY)
def loss_curve(
    loss_fn: LossOf,
    model: nn.Module,
    start: Checkpoint,
    control: Checkpoint,
    end: Checkpoint,
    *,
    points: int = POINTS,
    norm_batches: Iterable[Any] | None = None,
) -> LossPath:
    r"""Loss along the quadratic Bezier curve that ``control`` bends (arXiv 1802.10026).

    .. math:: \theta(t) = (1-t)^2\,\theta_\mathrm{start} + 2t(1-t)\,\theta_\mathrm{control}
        + t^2\,\theta_\mathrm{end}

    :func:`train_curve` finds a control point along which the loss is low. ``distance`` is that of the
    straight line; the other arguments and errors are those of :func:`loss_line`.
    """
    with terrain(loss_fn, model, norm_batches, start=start, end=end, control=control) as ground:
        steps = grid(points)
        losses = tuple(ground.loss((1 - t) ** 2, t**2, 2 * t * (1 - t)) for t in steps)
        ends = checked_ends(losses[0], losses[-1])
        return LossPath(steps, losses, ends, distance(ground.points, ground.params))
