"""Gradient centralisation (arXiv 2004.01461): every row of the gradient sums to zero."""

from __future__ import annotations

import torch

from thalweg.optim.transform import Transform, part, rows

__all__ = ["centralize"]


@part
def centralize() -> Transform:
    r"""Subtract from each row its mean: :math:`g_i \leftarrow g_i - \frac1n \sum_j g_{ij}`.

    A row is all weights of one output feature or channel. The sums of the rows then stay as they were at
    the start, without weight decay. Vectors, single numbers and rows of a single weight, of which nothing
    would be left, keep their gradient.
    """

    def measure(u, p, state, k):
        total = u.double().sum(1, keepdim=True)
        return total, torch.full_like(total, u.shape[1])

    def update(u, p, state, k):
        total, count = k.sums
        return u - (total / count).to(u.dtype), state

    def applies(p, k):
        return p.dim() > 1 and p.shape[1:].numel() > 1

    return rows(update, measure=measure, applies=applies, degree=1)
