"""A subspace of the smaller side of a matrix: how it is stored, and the way down into it and up again."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg._core.checks import check_count
from thalweg.optim._blocks import from_grid, pack, to_grid, unpack
from thalweg.optim.range_finder import leading_subspace
from thalweg.optim.transform import Scalars, State

GROUP = 256


def tall(p: Tensor) -> bool:
    """Whether the columns, not the rows, are the smaller side, which is the one that is compressed."""
    return p.shape[0] >= p.shape[1]


def is_matrix(p: Tensor) -> bool:
    """Whether ``p`` is real, 2-D and not empty, so that it has singular vectors."""
    return p.dim() == 2 and not p.is_complex() and p.numel() > 0


def check_rank(p: Tensor, rank: float) -> int:
    """``rank`` as an integer; ValueError if it is none, or larger than the matrix."""
    if rank != int(rank) or not 1 <= rank <= min(p.shape):
        raise ValueError(
            f"rank must be a whole number from 1 to {min(p.shape)} for a parameter of shape "
            f"{tuple(p.shape)}, got {rank:g}: give it a group with a smaller rank, or with 'rank': 0 for "
            "the plain rule"
        )
    return int(rank)


def low(p: Tensor, k: Scalars) -> Tensor:
    """What stands in for ``p`` inside: (m, rank) for a tall matrix, (rank, n) for a wide one."""
    rank = check_rank(p, k.rank)
    return p.new_empty((p.shape[0], rank) if tall(p) else (rank, p.shape[1]))


def down(u: Tensor, basis: Tensor) -> Tensor:
    return u @ basis if tall(u) else basis.T @ u


def factors(r: Tensor, basis: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """The two matrices whose product is what ``r`` is outside, in the shape of ``like``."""
    return (r, basis.T) if tall(like) else (basis, r)


def up(r: Tensor, basis: Tensor, factor: float, into: Tensor) -> Tensor:
    """``factor`` times what ``r`` is outside, in the memory of ``into``."""
    return torch.addmm(into, *factors(r, basis, into), beta=0, alpha=factor, out=into)


def add_up(total: Tensor, r: Tensor, basis: Tensor, factor: float) -> Tensor:
    """``total`` plus ``factor`` times what ``r`` is outside, in place."""
    return total.addmm_(*factors(r, basis, total), alpha=factor)


def leading(u: Tensor, rank: int, method: str, k: Scalars) -> Tensor:
    """The leading singular vectors of ``u`` on its smaller side; the seed depends on step and parameter."""
    seed = int(k.step) * 1_000_003 + k.index
    return leading_subspace(u.T if tall(u) else u, rank, method=method, seed=seed)


class FullBasis:
    """A basis in the state's own precision: slot ``basis``, (smaller side, rank)."""

    def missing(self, state: State) -> bool:
        first = state.basis[:, 0]  # of length 1, if there is one
        return not first.dot(first)

    def slots(self):
        return {"basis": lambda p, k: p.new_zeros(min(p.shape), check_rank(p, k.rank))}

    def read(self, state: State, u: Tensor, rank: int) -> Tensor:
        return state.basis.to(u.dtype)

    def orthonormal(self, state: State, u: Tensor) -> bool:
        """Whether it is, to the precision of ``u``."""
        return state.basis.dtype == u.dtype

    def write(self, state: State, basis: Tensor) -> None:
        state.basis.copy_(basis)


class GridBasis:
    """A basis on an even grid of ``bits`` bits: codes, and step and zero point of each 256 of them."""

    def __init__(self, bits: int):
        check_count("basis_bits", bits)
        self.bits = bits

    def missing(self, state: State) -> bool:
        return not state.basis_step[0]

    def slots(self):
        def groups(p, k):
            return -(-min(p.shape) * check_rank(p, k.rank) // GROUP)

        def codes(p, k):
            count = min(p.shape) * check_rank(p, k.rank)
            return torch.zeros(-(-count * self.bits // 8), dtype=torch.uint8, device=p.device)

        return {
            "basis": codes,
            "basis_step": lambda p, k: torch.zeros(groups(p, k), dtype=torch.float32, device=p.device),
            "basis_zero": lambda p, k: torch.zeros(groups(p, k), dtype=torch.uint8, device=p.device),
        }

    def read(self, state: State, u: Tensor, rank: int) -> Tensor:
        side = min(u.shape)
        codes = unpack(state.basis, self.bits, side * rank)
        return from_grid(codes, state.basis_step, state.basis_zero, GROUP).view(side, rank).to(u.dtype)

    def orthonormal(self, state: State, u: Tensor) -> bool:
        return False

    def write(self, state: State, basis: Tensor) -> None:
        codes, step, zero = to_grid(basis.float().reshape(-1), self.bits, GROUP)
        state.basis.copy_(pack(codes, self.bits))
        state.basis_step.copy_(step)
        state.basis_zero.copy_(zero)
