"""How far two trained networks are apart: the stability measures of lottery tickets (arXiv 1903.01611)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thalweg.surgery._edit import bare
from thalweg.surgery.held_masks import checked_masks

__all__ = ["TicketDistance", "ticket_distance"]


@dataclass(frozen=True)
class TicketDistance:
    """How far apart two networks are on the weights that a mask leaves.

    Attributes:
        l2: Euclidean distance.
        angle: in degrees.
    """

    l2: float
    angle: float


@torch.no_grad()
def ticket_distance(one: nn.Module, other: nn.Module, masks: Mapping[str, Tensor]) -> TicketDistance:
    r"""Distance of two networks on the weights that a mask leaves, in float64.

    Stability to pruning: the dense network against the one trained under the masks, from the same step and
    with the same data order, :math:`\|m \odot W_T - W_T^m\|_2`. Stability to data order: two trained under
    the same masks, with different orders; later work takes the barrier between the two for that, which is
    ``thalweg.probe.loss_line``.

    Args:
        masks: as :attr:`PruningRound.masks`.

    Raises:
        ValueError: a mask does not fit a parameter of both networks.
    """
    if not masks:
        raise ValueError("masks must name at least one parameter, got none")
    one, other = bare(one), bare(other)
    checked_masks(one, masks)
    checked_masks(other, masks)
    a, b = (
        torch.cat([net.get_parameter(name).double().cpu()[mask.cpu()] for name, mask in masks.items()])
        for net in (one, other)
    )
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=0).clamp(-1, 1).item()
    return TicketDistance(torch.linalg.vector_norm(a - b).item(), math.degrees(math.acos(cosine)))
