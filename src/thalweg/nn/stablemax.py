"""StableMax (arXiv 2501.04697): a softmax whose gradient survives large logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_choice

__all__ = ["StableMax", "stablemax_cross_entropy"]


def _log_s(logits: Tensor) -> Tensor:
    """log s(x): log(1 + x) from zero upwards, -log(1 - x) below."""
    # Not sign(x) log(1 + |x|): autograd finds no slope at 0 there, and a zero-initialised head starts at 0.
    return torch.where(logits >= 0, logits.clamp_min(0).log1p(), -(-logits).clamp_min(0).log1p())


def stablemax_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    dtype: torch.dtype | None = torch.float64,
    reduction: str = "mean",
    ignore_index: int = -100,
) -> Tensor:
    r"""Cross-entropy with StableMax in place of softmax (arXiv 2501.04697).

    .. math:: p_i = s(x_i) / \sum_j s(x_j), \qquad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1/(1-x) & x < 0 \end{cases}

    This is a softmax of :math:`\mathrm{sign}(x)\log(1+|x|)`: probabilities fall with the margin like its
    inverse, not its exponential, so no example is ever absorbed by rounding. Adding a constant to all logits
    changes the result, so none is subtracted. Probabilities are not those of a softmax: calibration and
    label smoothing change their meaning.

    Args:
        logits: shape (..., classes): classes come last, also for sequences and images.
        targets: shape (...), class indices.
        dtype: type of the computation, float64 as in the paper's code; None keeps that of ``logits``.
        reduction: ``mean`` or ``sum`` over the positions that count, or ``none``.
        ignore_index: target of positions that do not count.

    Returns:
        A scalar, or shape (...) for ``none``, in ``dtype``.

    Raises:
        ValueError: shapes do not fit, or an argument is out of range.
    """
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    if not logits.dim() or logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"targets must have the shape of logits without its last dimension, got {tuple(targets.shape)} "
            f"for logits {tuple(logits.shape)}"
        )
    if targets.dtype not in (torch.int64, torch.uint8):
        raise ValueError(f"targets must be class indices of torch.int64, got {targets.dtype}")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating type or None, got {dtype}")
    flat = logits.reshape(-1, logits.shape[-1]).to(dtype or logits.dtype)
    loss = nn.functional.cross_entropy(
        _log_s(flat), targets.reshape(-1), reduction=reduction, ignore_index=ignore_index
    )
    return loss.view(targets.shape) if reduction == "none" else loss


class StableMax(nn.Module):
    """:func:`stablemax_cross_entropy` as a loss module, in place of ``nn.CrossEntropyLoss``.

    Args:
        dtype, reduction, ignore_index: as there.

    Shape: logits (..., classes), targets (...), to a scalar, or (...) for ``reduction="none"``.
    """

    def __init__(
        self,
        *,
        dtype: torch.dtype | None = torch.float64,
        reduction: str = "mean",
        ignore_index: int = -100,
    ):
        super().__init__()
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.dtype = dtype
        self.reduction = reduction
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return stablemax_cross_entropy(
            logits, targets, dtype=self.dtype, reduction=self.reduction, ignore_index=self.ignore_index
        )

    def extra_repr(self) -> str:
        return f"dtype={self.dtype}, reduction={self.reduction!r}, ignore_index={self.ignore_index}"
