"""Alignment of two feature kernels: whether a network sees the same likenesses between examples as before."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg._core.not_finite import NotFiniteError
from thalweg.probe.cost import costs

__all__ = ["gram_alignment", "gram_matrix"]


@torch.no_grad()
@costs(0, 0, memory="a copy of the features, and a number for each pair of examples")
def gram_matrix(features: Tensor) -> Tensor:
    r"""Inner products of examples' features about their mean, :math:`K = \tilde X \tilde X^\top`.

    Args:
        features: shape (examples, ...), at least two examples; an example's numbers are taken for one vector.

    Returns:
        Shape (examples, examples), float32, or float64 for float64 features.

    Raises:
        ValueError: fewer than two examples, or features that are not finite.
    """
    if features.dim() < 2 or len(features) < 2:
        shape = tuple(features.shape)
        raise ValueError(f"features must have shape (examples, ...), two examples or more, got {shape}")
    rows = features.detach().flatten(1)
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    if not bool(rows.isfinite().all()):
        raise NotFiniteError("features must be finite, got NaN or infinity")
    rows = rows - rows.mean(0)
    return rows @ rows.T


@torch.no_grad()
@costs(0, 0, memory="none")
def gram_alignment(first: Tensor, second: Tensor) -> float:
    r"""Centred kernel alignment of two Gram matrices, :math:`\langle K, L\rangle / (\|K\| \|L\|)`, in [0, 1].

    1 where the features differ by a rotation and a scale only. While a network trains lazily (arXiv
    1812.07956) that of its features with those it began with stays near 1; where it learns features it falls.

    Args:
        first, second: of the same examples, as :func:`gram_matrix` gives them.

    Raises:
        ValueError: shapes do not fit, or the features of one of them are all alike.
    """
    if first.dim() != 2 or first.shape[0] != first.shape[1] or first.shape != second.shape:
        raise ValueError(
            "first and second must be square and of the same examples, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    one, other = first.double(), second.to(first.device).double()
    norms = one.norm() * other.norm()
    if not bool(norms > 0):
        raise ValueError("features must differ between examples, got some that are all alike")
    return ((one * other).sum() / norms).item()
