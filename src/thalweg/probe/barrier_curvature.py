"""A barrier told by distance and curvature: slopes and curvatures along a line (arXiv 2406.16300)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import nn

from thalweg.probe._checkpoints import Checkpoint, distance, layer_parameters, moving
from thalweg.probe._randomness import same_randomness
from thalweg.probe._terrain import LossOf, terrain
from thalweg.probe.cost import costs
from thalweg.probe.loss_paths import grid
from thalweg.probe.operator import flatten, hvp_operator

__all__ = ["LineCurvature", "line_curvature"]

POINTS = 3


@dataclass(frozen=True)
class LineCurvature:
    r"""Loss, slope and curvature along a line, all in units of the loss: the line has length one in t.

    Attributes:
        at: the values of t, from 0 to 1.
        losses: the loss :math:`\varphi(t)`.
        slopes: :math:`\varphi'(t) = D \cdot \nabla L`, with D the end minus the start.
        curvatures: :math:`\varphi''(t) = D^\top H D`.
        distance: length of D.
    """

    at: tuple[float, ...]
    losses: tuple[float, ...]
    slopes: tuple[float, ...]
    curvatures: tuple[float, ...]
    distance: float

    @property
    def midpoint(self) -> float:
        """Excess at the midpoint told by the curvature there: -1/8 of it, exact up to fourth order in D."""
        curvature = float(np.interp(0.5, self.at, self.curvatures))
        return -curvature / 8

    @property
    def crossing(self) -> float:
        """Barrier told by the ends: their parabolas meet on a ridge, whose height over the chord this is."""
        low, high = self.losses[0], self.losses[-1]
        ahead = Polynomial([low, self.slopes[0], self.curvatures[0] / 2])
        behind = Polynomial([high, self.slopes[-1], self.curvatures[-1] / 2])(Polynomial([-1, 1]))
        chord = Polynomial([low, high - low])
        turns = (one.roots() for one in (ahead - behind, (ahead - chord).deriv(), (behind - chord).deriv()))
        t = np.concatenate([np.array([0, 1]), *turns])
        t = t[np.isreal(t)].real.clip(0, 1)
        return max(0.0, float((np.minimum(ahead(t), behind(t)) - chord(t)).max()))

    @property
    def excess(self) -> tuple[float, ...]:
        r"""Excess over the chord at each t by the exact identity, integrated with the trapezoidal rule:

        :math:`-\int_0^1 \min(t, s)\,(1 - \max(t, s))\,\varphi''(s)\,ds`. A barrier needs negative curvature
        somewhere. Kinks (ReLU) hold curvature that no Hessian product sees.
        """
        s, curvatures = np.array(self.at), np.array(self.curvatures)
        kernels = (np.minimum(t, s) * (1 - np.maximum(t, s)) for t in self.at)
        return tuple(-float(np.trapezoid(kernel * curvatures, s)) for kernel in kernels)


@costs(
    2 * POINTS, 2 * POINTS, hvps=POINTS, memory="the graph of one gradient and three copies of the weights"
)
def line_curvature(
    loss_fn: LossOf,
    model: nn.Module,
    start: Checkpoint,
    end: Checkpoint,
    *,
    points: int = POINTS,
    layer: str | None = None,
    norm_batches: Iterable[Any] | None = None,
) -> LineCurvature:
    r"""Slope and curvature of the loss along a line, by one Hessian product a point.

    Three points give :attr:`LineCurvature.midpoint` and :attr:`LineCurvature.crossing`, the estimates of the
    barrier from distance and curvature; with 17 or more, :attr:`LineCurvature.excess` is the whole profile.

    Frozen parameters stay at the start. Statistics of batch normalisation are recomputed at every point
    and then held fixed: their own change along the line is not seen.

    Args:
        layer: move this module alone, the rest stays at the start; by default everything moves.
        loss_fn: as in :func:`loss_line`, twice differentiable.
        model, start, end, points, norm_batches: as in :func:`loss_line`.

    Raises:
        ValueError: as :func:`loss_line` and :func:`hvp_operator` say, or an unknown layer.
    """
    with torch.inference_mode(False), terrain(loss_fn, model, norm_batches, start=start, end=end) as ground:
        names = moving(ground.model) if layer is None else layer_parameters(ground.model, [layer])[layer]
        frozen = {name for name, p in ground.params.items() if not p.requires_grad}
        only = [name for name in names if name not in frozen]
        moved = {name: p for name, p in ground.params.items() if name in only}
        if not moved:
            raise ValueError("model must have parameters that move and require a gradient, got none")
        listed = list(moved.values())
        steps = grid(points)
        rows = []
        for t in steps:
            with same_randomness():
                ground.stand(1 - t, t, only=only)
                operator = hvp_operator(lambda: ground.loss_fn(ground.model), listed)
                first, last = (flatten([point[n] for n in moved], operator.like) for point in ground.points)
                step = last - first
            with same_randomness(), torch.enable_grad():
                loss = ground.loss_fn(ground.model).reshape(())
                gradient = torch.autograd.grad(loss, listed, allow_unused=True, materialize_grads=True)
            slope = torch.dot(flatten(gradient, operator.like), step)
            rows.append((loss.item(), slope.item(), torch.dot(operator.matvec(step), step).item()))
        losses, slopes, curvatures = zip(*rows, strict=True)
        return LineCurvature(steps, losses, slopes, curvatures, distance(ground.points, moved))
