"""How much of a gradient a subspace leaves out, by row or column, seldom at the cost of a product."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from thalweg.optim._pieces import pieces
from thalweg.optim._subspace import factors, tall

# The difference of two sums of squares will do where it is at least this share of the first, so that enough
# digits are left, and where no square that counts leaves the range of float32.
LEAST_SHARE = 1e-2
LEAST_MEAN = 1e-30


def left_squares(
    u: Tensor, projected: Tensor, basis: Tensor, share: float, orthonormal: bool
) -> tuple[Tensor, Tensor]:
    r"""Sums of squares, in float64, of ``u`` and of what is left of it: a row each if tall, else a column.

    What is left is :math:`G - s P R` with :math:`R = P^\top G`. If :math:`P^\top P = 1`, the square of its
    column is :math:`\lVert g \rVert^2 - (2 s - s^2) \lVert r \rVert^2`; otherwise, and where little is left,
    it is formed a few rows at a time.
    """
    axis = 1 if tall(u) else 0
    if orthonormal:
        whole = _added((piece.square().sum(axis, keepdim=True) for (piece,) in pieces(u)), axis)
        inside = projected.square().sum(axis, keepdim=True).double()
        left = whole - (2 * share - share**2) * inside
        if left.sum() > LEAST_SHARE * whole.sum() > LEAST_SHARE * LEAST_MEAN * u.numel():
            return whole, left.clamp_min(0)
    a, b = factors(projected, basis, u)
    whole = _squares((piece for (piece,) in pieces(u)), axis)
    return whole, _squares((torch.addmm(piece, part, b, alpha=-share) for piece, part in pieces(u, a)), axis)


def _squares(matrices: Iterable[Tensor], axis: int) -> Tensor:
    return _added((one.double().square().sum(axis, keepdim=True) for one in matrices), axis)


def _added(sums: Iterable[Tensor], axis: int) -> Tensor:
    """The sums of all pieces, which are of different rows or of the same columns."""
    found = [one.double() for one in sums]
    return torch.cat(found) if axis == 1 else torch.stack(found).sum(0)
