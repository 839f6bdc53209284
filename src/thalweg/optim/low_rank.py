"""Gradients in a subspace: GaLore (arXiv 2403.03507), Q-GaLore (2407.08296) and Fira (2410.01623)."""

from __future__ import annotations

import math
from typing import Any

import torch

from thalweg._core.checks import check_choice, check_count, check_number, check_positive
from thalweg._core.factored import InSubspace
from thalweg.optim._nested import check_inner, diagonal_of, inner_slots, run_inner
from thalweg.optim._pieces import finite
from thalweg.optim._residual import left_squares
from thalweg.optim._subspace import (
    FullBasis,
    GridBasis,
    add_up,
    check_rank,
    down,
    is_matrix,
    leading,
    low,
    tall,
    up,
)
from thalweg.optim.adaptive import adam
from thalweg.optim.range_finder import METHODS
from thalweg.optim.transform import Scalars, Transform, matrix, part

__all__ = ["project"]

QUEUE = 5  # overlaps that a lazy refresh looks back on
ADAM = adam()
NEGLIGIBLE = 1e-5  # a residual below this share of the gradient is rounding


@part
def project(
    rank: int = 128,
    every: int = 200,
    inner: Transform = ADAM,
    scale: float = 0.25,
    method: str = "randomized",
    basis_bits: int | None = None,
    lazy: bool = False,
    lazy_threshold: float = 0.4,
    residual: str = "none",
    growth: float = 1.01,
) -> Transform:
    r"""Run ``inner`` on the gradient's part in a subspace of rank ``rank``, and bring its update back.

    .. math:: R_t = P^\top G_t, \qquad u_t = \alpha P\, \mathrm{inner}(R_t)
        \quad (G P \text{ and } P^\top \text{ for a matrix that is tall or square})

    The smaller side is compressed. :math:`P` holds the leading singular vectors of the gradient at steps
    1, 1 + ``every``, ...; the state of ``inner`` is neither turned nor reset then, as in the released code,
    so the loss may jump. Tensors that are not matrices, complex ones, and groups with ``rank`` 0 go through
    ``inner`` as it is.

    Args:
        rank: 1 to the smaller side of every matrix; a group may override it.
        every: steps between two subspaces.
        inner: any transform that works on one tensor by itself.
        scale: :math:`\alpha`, greater than 0: the effective learning rate is lr times this.
        method: ``randomized`` range finder, or exact ``svd``.
        basis_bits: store :math:`P` in 8 or 4 bits (Q-GaLore); None for the state's own precision.
        lazy: double the interval of a parameter whenever its leading direction has kept still: when the
            last five cosines between new and old ones (by magnitude, as their sign is arbitrary) average at
            least ``lazy_threshold``.
        residual: ``scaled`` adds what the subspace leaves out, each column (row, if tall) scaled as
            ``inner`` scaled its projection, with the growth of its norm limited (Fira). ``released`` forms
            it as Fira's released code does, from :math:`G - \alpha P R`.
        growth: by how much a step may raise the norm of that residual, at least 1.

    State: ``basis`` (smaller side, rank), ``inner``'s slots shaped like :math:`R`; with ``lazy`` also
    ``refresh`` (interval and next step), ``overlaps`` and ``leading``; with a residual ``norm``.

    Raises:
        ValueError: when the optimizer is made, for a rank larger than some matrix.
    """
    check_inner("inner", inner, weights=False)
    check_count("rank", rank, low=0)
    check_count("every", every)
    check_positive("scale", scale)
    check_choice("method", method, METHODS)
    check_choice("residual", residual, ("none", "scaled", "released"))
    check_number("lazy_threshold", lazy_threshold, 0, 1)
    check_number("growth", growth, 1, math.inf, "[)")
    if basis_bits is not None:
        check_choice("basis_bits", basis_bits, (8, 4))
    basis = FullBasis() if basis_bits is None else GridBasis(basis_bits)

    fresh: dict[str, Any] = {**basis.slots(), **inner_slots(inner, low)}
    if lazy:
        fresh["refresh"] = lambda p, k: torch.tensor([float(every), 1.0], dtype=torch.float64)
        fresh["overlaps"] = lambda p, k: torch.full((QUEUE,), -1.0, dtype=torch.float64)
        fresh["leading"] = lambda p, k: p.new_zeros(min(p.shape))
    if residual != "none":
        fresh["norm"] = lambda p, k: torch.zeros((), dtype=torch.float64, device=p.device)

    def due(state, k):
        usual = k.step >= state.refresh[1] if lazy else (k.step - 1) % every == 0
        return usual or basis.missing(state)

    def refreshed(u, state, k):
        """A new basis in the state; the old one stays if the gradient is not finite."""
        if not finite(u):
            return state
        found = leading(u, int(k.rank), method, k)
        basis.write(state, found)
        return moved(found[:, 0], state, k) if lazy else state

    def moved(first, state, k):
        """Note how far the leading direction has turned, and wait longer if it keeps still."""
        overlaps, wait = state.overlaps, float(state.refresh[0])
        if state.leading.any():
            cosine = torch.dot(first.double(), state.leading.double()).abs().cpu()
            overlaps = torch.cat([overlaps[1:], cosine[None]])
            if overlaps.min() >= 0 and overlaps.mean() >= k.lazy_threshold:  # there are five: none is -1
                wait *= 2
        later = torch.tensor([wait, k.step + wait], dtype=torch.float64)
        return state.replace(overlaps=overlaps, refresh=later, leading=first.to(state.leading.dtype))

    def update(u, p, state, k):
        if due(state, k):
            state = refreshed(u, state, k)
        held = basis.read(state, u, int(k.rank))
        projected = down(u, held)
        moved_by, state = run_inner(inner, projected, None, state, k)
        if residual == "none":
            return up(moved_by, held, k.scale, u if k.owned else torch.empty_like(u)), state
        # The residual with its factor, (G - s P R) f, is G f - P (s R f): one product does for both.
        share = k.scale if residual == "released" else 1.0
        squares = left_squares(u, projected, held, share, basis.orthonormal(state, u))
        factor, state = left_factor(squares, projected, moved_by, 1 if tall(u) else 0, state, k)
        inside = torch.addcmul(moved_by.mul_(k.scale), projected, factor, value=-share)
        out = torch.mul(u, factor, out=u if k.owned else None)
        return add_up(out, inside, held, 1.0), state

    def left_factor(squares, projected, moved_by, axis, state, k):
        """The factor of each row or column of the residual, limited before inner's bias correction."""
        whole, left = squares
        correction = k.values.get("unbias", 1.0) / k.values.get("unbias_root", 1.0)
        size = projected.norm(dim=axis, keepdim=True)
        factor = moved_by.norm(dim=axis, keepdim=True) / correction / (size + 1e-8)
        now, last = (factor.double().square() * left).sum().sqrt(), state.norm
        counts = left.sum().sqrt() > NEGLIGIBLE * whole.sum().sqrt()
        cut = torch.where((last > 0) & (now > k.growth * last), k.growth * last / now, 1.0)
        state = state.replace(norm=torch.where(counts, now * cut, last))
        return factor * (cut * correction).to(factor.dtype), state

    def precondition(state, k):
        if basis.missing(state):
            return None
        inside = diagonal_of(inner, state, Scalars({**k.values, "parameter": low(k.parameter, k)}))
        held = basis.read(state, k.parameter, int(k.rank))
        return None if inside is None else InSubspace(k.parameter.shape, held, inside, float(k.scale))

    return matrix(
        update,
        slots=tuple(fresh),
        fresh=fresh,
        scalars=inner.scalars,
        applies=lambda p, k: is_matrix(p) and k.rank != 0 and check_rank(p, k.rank) > 0,
        otherwise=inner,
        precondition=precondition if residual == "none" else None,
        stability=inner.stability if residual == "none" else None,
        degree=inner.degree,
        rank=rank,
        scale=scale,
        lazy_threshold=lazy_threshold,
        growth=growth,
        **inner.hyper,
    )
