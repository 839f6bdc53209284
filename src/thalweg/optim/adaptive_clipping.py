"""Adaptive gradient clipping (arXiv 2102.06171): each unit's gradient in proportion to its weights."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_positive
from thalweg.optim.transform import Transform, part, rows

__all__ = ["adaptive_clip"]


@part
def adaptive_clip(ratio: float = 0.01, eps: float = 1e-3) -> Transform:
    r"""Scale down each unit whose gradient is large against its weights.

    .. math:: g_i \leftarrow g_i \min\!\left(1,\; \lambda\,\frac{\max(\|w_i\|, \epsilon)}{\|g_i\|}\right)

    A unit is a row: all weights of one output feature or channel; a vector is one unit. It was made for
    networks without normalisation layers and large batches. The paper leaves the last linear layer out:
    give that a group with a large ``ratio``.

    Args:
        ratio: :math:`\lambda`, greater than 0. The larger the batch the smaller: 0.01 at 4096 in the paper,
            0.16 at 256.
        eps: :math:`\epsilon`, greater than 0: the least norm that a unit counts with, or weights that start
            at zero would never move.
    """
    check_positive("ratio", ratio)
    check_positive("eps", eps)

    def measure(u, p, state, k):
        wide, weights = u.double(), p.double()
        return (wide * wide).sum(1, keepdim=True), (weights * weights).sum(1, keepdim=True)

    def update(u, p, state, k):
        gradient, weights = k.sums
        limit = k.ratio * weights.sqrt().clamp(min=eps)
        over = gradient > limit * limit
        return u * torch.where(over, limit / gradient.sqrt(), 1.0).to(u.dtype), state

    return rows(update, measure=measure, degree=1, ratio=ratio)
