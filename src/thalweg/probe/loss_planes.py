"""Loss over a plane: through three checkpoints (arXiv 1802.10026), or two random directions (1712.09913)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_not_negative, check_positive
from thalweg.probe._checkpoints import Checkpoint, Weights, bare
from thalweg.probe._terrain import LossOf, Terrain, terrain
from thalweg.probe.cost import costs
from thalweg.probe.filter_directions import filter_direction
from thalweg.probe.loss_paths import MEMORY

__all__ = ["LossPlane", "loss_plane", "random_plane"]

POINTS = 21
DEGENERATE = 1e-6  # share of the longer side under which three points count as lying on one line


@dataclass(frozen=True)
class LossPlane:
    """Losses on a grid.

    Attributes:
        x, y: coordinates of the columns and the rows, in ``unit``.
        losses: shape (rows, columns), float64; NaN and infinity stay.
        anchors: checkpoint to its (x, y).
        unit: what the coordinates count: distance in parameter space, or filter norms.
        cosine: of the two axes over all parameters: 0 for checkpoints, about 0 for random directions.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    losses: Tensor
    anchors: dict[str, tuple[float, float]]
    unit: str
    cosine: float


@costs(POINTS**2, 0, memory=MEMORY)
def loss_plane(
    loss_fn: LossOf,
    model: nn.Module,
    first: Checkpoint,
    second: Checkpoint,
    third: Checkpoint,
    *,
    points: int = POINTS,
    margin: float = 0.2,
    norm_batches: Iterable[Any] | None = None,
) -> LossPlane:
    r"""Loss over the plane through three checkpoints (arXiv 1802.10026).

    ``first`` is the origin, ``second`` lies on the x axis, ``third`` above it; coordinates are distances in
    parameter space, so that the picture is to scale.

    Args:
        points: columns and rows, at least 2; ``points ** 2`` forward passes.
        margin: how far the grid reaches beyond the checkpoints, as a share of their extent.
        loss_fn, model, first, second, third, norm_batches: as in :func:`loss_line`.

    Raises:
        ValueError: as :func:`loss_line`, or the three lie on one line.
    """
    check_count("points", points, 2)
    check_not_negative("margin", margin)
    with terrain(loss_fn, model, norm_batches, first=first, second=second, third=third) as ground:
        names = list(ground.params)
        a, b, c = ({n: point[n].to(ground.params[n].device) for n in names} for point in ground.points)
        across = _product(a, b, b)
        base, side = across**0.5, _product(a, c, c) ** 0.5
        along = _product(a, b, c) / base if base else 0.0
        if not np.isfinite([across, side, along]).all():
            raise ValueError("first, second and third must be finite, got NaN or infinity in one of them")
        height = max(side**2 - along**2, 0.0) ** 0.5
        if height <= DEGENERATE * max(base, side) or not base:
            raise ValueError("third must not lie on the line through first and second, got three such points")
        x, y = _axis((0.0, base, along), points, margin), _axis((0.0, height), points, margin)

        def loss(column: float, row: float) -> float:
            gamma = row / height
            beta = (column - gamma * along) / base
            return ground.loss(1 - beta - gamma, beta, gamma)

        losses = torch.tensor([[loss(column, row) for column in x] for row in y], dtype=torch.float64)
    anchors = {"first": (0.0, 0.0), "second": (base, 0.0), "third": (along, height)}
    return LossPlane(x, y, losses, anchors, "distance in parameter space", 0.0)


@costs(POINTS**2, 0, memory=MEMORY)
def random_plane(
    loss_fn: LossOf,
    model: nn.Module,
    *,
    center: Checkpoint | None = None,
    directions: Sequence[Mapping[str, Tensor]] | None = None,
    radius: float = 1.0,
    points: int = POINTS,
    vectors: str = "zero",
    generator: torch.Generator | None = None,
    norm_batches: Iterable[Any] | None = None,
) -> LossPlane:
    r"""Loss over :math:`\theta + x d_1 + y d_2` with filter-normalised random directions (arXiv 1712.09913).

    Args:
        center: the checkpoint in the middle; by default the model as it is.
        directions: two mappings of parameter names to tensors, taken as they are; a parameter without an
            entry stays. By default two of :func:`filter_direction`, whose unit is the filter norm: at 1 the
            step is as long as the weights.
        radius: the grid reaches from minus to plus this, in that unit.
        points: columns and rows, at least 2; odd, so that the centre is one of them.
        vectors, generator: as in :func:`filter_direction`.
        loss_fn, model, norm_batches: as in :func:`loss_line`.

    Raises:
        ValueError: as :func:`loss_line` and :func:`filter_direction`, or a direction does not fit.
    """
    check_count("points", points, 2)
    check_positive("radius", radius)
    model = bare(model)
    with terrain(loss_fn, model, norm_batches, center=model if center is None else center) as ground:
        ground.stand(1.0)  # the lengths are those of the centre's filters
        if directions is None:
            generator = generator or torch.Generator().manual_seed(0)
            chosen = [filter_direction(model, vectors=vectors, generator=generator) for _ in range(2)]
        else:
            chosen = _checked(directions, ground)
        ground.points.extend(chosen)
        axis = _axis((-radius, radius), points, 0.0)
        rows = [[ground.loss(1.0, column, row) for column in axis] for row in axis]
    losses = torch.tensor(rows, dtype=torch.float64)
    first, second = chosen
    lengths = (_inner(first, first) * _inner(second, second)) ** 0.5
    cosine = _inner(first, second) / lengths if lengths else 0.0
    unit = "filter norms" if directions is None else "lengths of the direction"
    return LossPlane(axis, axis, losses, {"center": (0.0, 0.0)}, unit, cosine)


def _axis(ends: Iterable[float], points: int, margin: float) -> tuple[float, ...]:
    low, high = min(ends := tuple(ends)), max(ends)
    reach = margin * (high - low)
    return tuple(np.linspace(low - reach, high + reach, points).tolist())


def _product(origin: Weights, one: Weights, other: Weights) -> float:
    """Inner product of ``one - origin`` and ``other - origin``."""
    steps = ({n: p.double() - origin[n].double() for n, p in point.items()} for point in (one, other))
    return _inner(*steps)


def _inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((t.double() * other[n].double()).sum()) for n, t in one.items() if n in other)


def _checked(directions: Sequence[Mapping[str, Tensor]], ground: Terrain) -> list[Weights]:
    if len(directions) != 2:
        raise ValueError(f"directions must hold two mappings, got {len(directions)}")
    for number, direction in enumerate(directions):
        for name, step in direction.items():
            wanted = ground.params.get(name)
            if wanted is None or step.shape != wanted.shape:
                shape = None if wanted is None else tuple(wanted.shape)
                raise ValueError(
                    f"directions[{number}][{name!r}] must have the shape of the parameter of that name, "
                    f"{shape}; got {tuple(step.shape)}"
                )
    return [{name: step.detach() for name, step in direction.items()} for direction in directions]
