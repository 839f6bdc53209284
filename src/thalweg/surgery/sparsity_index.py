"""PQ index (arXiv 2302.05601): how unevenly the size of weights is spread, and how many must stay."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from thalweg._core.checks import check_not_negative, check_positive

__all__ = ["pq_index", "retained_bound"]


@torch.no_grad()
def pq_index(weights: Tensor, p: float = 0.5, q: float = 1.0) -> float:
    r"""Scale-free sparsity of the d entries of ``weights``, in float64.

    .. math:: I = 1 - d^{1/q - 1/p} \frac{\|w\|_p}{\|w\|_q}
        = 1 - \frac{(\mathrm{mean}\,|w|^p)^{1/p}}{(\mathrm{mean}\,|w|^q)^{1/q}}

    0 where all entries have one size, :math:`1 - d^{1/q - 1/p}` for a single one that is not zero. Pass the
    unpruned entries only: zeros count, and those of a mask would make it rise with every cut. Of zeros alone,
    and of no entries, it is 0.

    Args:
        weights: of any shape.
        p, q: 0 < p < q.

    Raises:
        ValueError: for other p and q, or entries that are not finite.
    """
    _check_powers(p, q)
    if not isinstance(weights, Tensor):
        raise ValueError(f"weights must be a tensor, got {type(weights).__name__}")
    sizes = weights.detach().double().abs().flatten()
    if not bool(sizes.isfinite().all()):
        raise ValueError("weights must be finite")
    largest = sizes.max().item() if len(sizes) else 0.0
    if largest == 0:
        return 0.0
    sizes = sizes / largest  # so that no power leaves the range of numbers
    ratio = (sizes**p).mean() ** (1 / p) / (sizes**q).mean() ** (1 / q)
    return max(0.0, 1 - ratio.item())


def retained_bound(count: int, index: float, *, p: float = 0.5, q: float = 1.0, eta: float = 0.0) -> float:
    r"""The least number m of weights to keep, of ``count`` with PQ index ``index``.

    If the dropped entries carry :math:`\sum |w|^p` of at most :math:`\eta` times that of the m largest, then

    .. math:: m \ge d\,(1 + \eta)^{-q/(q - p)}\,(1 - I)^{pq/(q - p)}.

    Raises:
        ValueError: unless 0 < p < q, eta >= 0 and the index is in [0, 1].
    """
    _check_powers(p, q)
    check_not_negative("eta", eta)
    if not 0 <= index <= 1:
        raise ValueError(f"index must be in [0, 1], got {index}")
    return count * math.pow(1 + eta, -q / (q - p)) * math.pow(1 - index, p * q / (q - p))


def _check_powers(p: float, q: float) -> None:
    check_positive("p", p)
    check_positive("q", q)
    if not p < q:
        raise ValueError(f"p must be below q = {q:g}, got {p:g}")
