"""Gradient clipping entry by entry, the blunter relative of clipping by norm (arXiv 1211.5063)."""

from __future__ import annotations

from thalweg._core.checks import check_positive
from thalweg.optim.transform import Transform, element, part

__all__ = ["clip_value"]


@part
def clip_value(limit: float = 1.0) -> Transform:
    """Clip each entry of the update to [-limit, limit], as ``torch.nn.utils.clip_grad_value_``.

    Unlike :func:`thalweg.optim.clip_norm` it needs no sums and changes the direction. An infinite entry
    becomes the limit; NaN stays.

    Args:
        limit: greater than 0.
    """
    check_positive("limit", limit)
    return element(lambda u, p, state, k: (u.clamp(-k.limit, k.limit), state), degree=1, limit=limit)
