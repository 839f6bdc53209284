"""The z-loss (arXiv 2204.02311, 2309.14322): holds the softmax's normaliser near one."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg._core.checks import check_not_negative

__all__ = ["z_loss"]


def z_loss(
    logits: Tensor, coefficient: float = 1e-4, *, targets: Tensor | None = None, ignore_index: int = -100
) -> Tensor:
    r"""Add to the cross-entropy so that the output logits do not drift (arXiv 2204.02311, 2309.14322).

    .. math:: c \cdot \mathrm{mean}\,(\log Z)^2, \qquad Z = \sum_i e^{z_i}

    Cross-entropy does not change when all logits of an example move together; this does.

    Args:
        logits: shape (..., classes); computed in float32 at least, as bfloat16 is too coarse for it.
        coefficient: :math:`c`, at least 0.
        targets: shape (...), only to leave out positions; by default all count.
        ignore_index: target of positions that do not count.

    Returns:
        A scalar; 0 if no position counts.

    Raises:
        ValueError: ``coefficient`` is negative or shapes do not fit.
    """
    check_not_negative("coefficient", coefficient)
    if not logits.dim() or not logits.shape[-1]:
        raise ValueError(f"logits must have shape (..., classes), got {tuple(logits.shape)}")
    log_z = logits.to(torch.promote_types(logits.dtype, torch.float32)).logsumexp(-1)
    if targets is None:
        return coefficient * log_z.square().sum() / max(log_z.numel(), 1)
    if targets.shape != log_z.shape:
        raise ValueError(
            f"targets must have the shape of logits without its last dimension, got "
            f"{tuple(targets.shape)} for logits {tuple(logits.shape)}"
        )
    counts = targets != ignore_index
    # Weighted, not selected: a selection of unknown size would stop the host and torch.compile.
    return coefficient * log_z.square().where(counts, 0).sum() / counts.sum().clamp_min(1)
