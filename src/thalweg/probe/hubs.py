"""Hub neurons: the few hidden units that carry most of a layer, the other end of the dormancy score."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from thalweg._core.checks import check_number
from thalweg.probe.cost import costs
from thalweg.probe.neurons import activity_scores

__all__ = ["HubNeurons", "hub_neurons"]


@dataclass(frozen=True)
class HubNeurons:
    """Which hidden units dominate their layer, and how few carry it.

    Attributes:
        units: layer to the indices of its units with a score of at least ``factor``, the strongest first.
        carried: layer to the share of its whole activity that those units have, in [0, 1].
        active_units: layer to the effective number of active units, (sum of scores)² / sum of squares: all
            of them when they are equally active, 1 when one has all the activity, 0 in a silent layer.
        scores: layer to the score of each unit, shape (units,), with mean one.
        factor: as given.
    """

    units: dict[str, tuple[int, ...]]
    carried: dict[str, float]
    active_units: dict[str, float]
    scores: dict[str, Tensor]
    factor: float


@costs(1, 0, memory="one number a unit")
def hub_neurons(
    model: nn.Module,
    batch: Any,
    *,
    factor: float = 5.0,
    layers: Iterable[str] | None = None,
    inputs_of: Iterable[str] | None = None,
    unit_dim: int | None = None,
    group: Any = None,
) -> HubNeurons:
    r"""Units whose mean absolute activation is ``factor`` times their layer's mean or more.

    The score is that of :func:`dormant_neurons` (arXiv 2302.12902). As units fall silent, the others carry
    more: watch ``active_units``, a participation ratio, next to the dormant share.

    Args:
        model, batch, layers, inputs_of, unit_dim, group: as for :func:`dormant_neurons`.
        factor: above 1.

    Raises:
        ValueError: ``factor`` is out of range; else as :func:`dormant_neurons`.
    """
    factor = check_number("factor", factor, 1, math.inf, "()")
    scores = activity_scores(model, batch, layers, inputs_of, unit_dim, group)
    units, carried, active = {}, {}, {}
    for name, score in scores.items():
        order = score.argsort(descending=True, stable=True)
        hubs = order[score[order] >= factor]
        wide = score.double()
        total, squares = wide.sum().item(), wide.square().sum().item()
        units[name] = tuple(hubs.tolist())
        carried[name] = wide[hubs].sum().item() / total if total else 0.0
        active[name] = total**2 / squares if squares else 0.0
    return HubNeurons(units, carried, active, scores, factor)
