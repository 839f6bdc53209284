"""Weights on an 8-bit grid, written with stochastic rounding (Q-GaLore, arXiv 2407.08296)."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_choice, check_count
from thalweg.optim._blocks import by_block, grid_of
from thalweg.optim._loop import loop
from thalweg.optim._pieces import PIECE
from thalweg.optim._rounding import hashed_bits
from thalweg.optim.transform import Transform, matrix, part

__all__ = ["integer_weights"]


@part
def integer_weights(weight_bits: int = 8, group: int = 256, smallest: int = 4096) -> Transform:
    r"""Let the step end on a grid of 256 even values for every ``group`` consecutive weights.

    Rounding is up with the probability of the remainder, so that steps much smaller than the grid still
    count on average; to nearest they would all be lost. Put it last in a chain. The weights themselves stay
    floating-point tensors, of which all values lie on the grid: the training behaves as with 8-bit weights,
    their memory is that of the tensors that you have. ``thalweg plan`` counts one byte a weight.

    Args:
        weight_bits: 8; or 0, for groups whose weights are on no grid (embeddings and head in the paper).
        group: weights that share a grid.
        smallest: matrices with fewer elements, and all other tensors, are left as they are.
    """
    check_choice("weight_bits", weight_bits, (8, 0))
    check_count("group", group)
    check_count("smallest", smallest, low=0)

    def update(u, p, state, k):
        if k.lr == 0:
            return u, state
        seed = k.index * 65537 + int(k.step)
        out = u if k.owned and u.is_contiguous() else u.clone(memory_format=torch.contiguous_format)
        flat, weights = out.view(-1), p.reshape(-1)
        most = PIECE if k.values.get("compiles") else PIECE // 4  # eager noise takes 64-bit integers
        size = group * max(1, most // group)
        for start in range(0, len(flat), size):
            step, w = flat[start : start + size], weights[start : start + size]
            places = torch.tensor([seed, start], device=p.device)
            rows, weights_of = by_block(step, group), by_block(w, group)
            landed = torch.empty_like(rows)
            loop("integer_weights", group, landing, k, landed, rows.data, weights_of.data, places)
            step.copy_(landed.view(-1)[: len(step)])
        return out, state

    def landing(k, out, step, w, places):
        """Change the steps of some groups, (groups, size), so that they end on the grid."""
        assert step.shape[1] == group  # a constant, once compiled
        seed, start = places.unbind()
        noise = hashed_bits(torch.arange(step.numel(), device=step.device).view(step.shape) + start, seed)
        codes, width, zero = grid_of(w - k.lr * step, 8, noise.to(w.dtype) / 65536)
        grid = ((codes - zero[:, None]) * width[:, None]).to(w.dtype)
        out.copy_(torch.where(step.isfinite(), (w - grid) / k.lr, step))

    def applies(p, k):
        return k.weight_bits > 0 and p.dim() == 2 and p.numel() >= smallest and not p.is_complex()

    return matrix(update, applies=applies, degree=1, weight_bits=weight_bits)
