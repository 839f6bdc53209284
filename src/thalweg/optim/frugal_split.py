"""A part of each gradient with state, the rest without (FRUGAL, arXiv 2411.07837)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg._core.checks import (
    check_choice,
    check_count,
    check_not_negative,
    check_number,
)
from thalweg._core.factored import InSubspace
from thalweg.optim._kernel import made
from thalweg.optim._loop import entries
from thalweg.optim._nested import check_inner, diagonal_of, inner_slots, run_inner
from thalweg.optim._pieces import finite
from thalweg.optim._subspace import add_up, down, factors, is_matrix, leading, tall
from thalweg.optim.adaptive import adam
from thalweg.optim.transform import Scalars, State, Transform, element, matrix, part

__all__ = ["sign", "split"]

KINDS = ("columns", "rows", "random", "svd", "blocks")
ADAM = adam()
NOISE = 1e-6  # an entry of the rest below this share of the largest gradient entry is rounding


@part
def sign() -> Transform:
    r""":math:`u = \mathrm{sign}(g)`, without state; an entry of 0 does not move."""
    return element(lambda u, p, state, k: (u.sign(), state), degree=0)


SIGN = sign()


def source(k: Scalars, every: int, own: bool = True) -> torch.Generator:
    """Random numbers for this interval, of this parameter alone or the same for all."""
    interval = int(k.step - 1) // every
    return torch.Generator().manual_seed(interval * 1_000_003 + (k.index if own else 0))


def chosen_blocks(k: Scalars, density: float, every: int) -> bool:
    """Whether this parameter is among the ``density`` of all that have state in this interval."""
    order = torch.randperm(int(k.count), generator=source(k, every, own=False))
    return bool((order == k.index).nonzero().item() < max(1, round(density * k.count)))


@part
def split(
    by: str = "columns",
    density: float = 0.25,
    every: int = 200,
    inner: Transform = ADAM,
    rest: Transform = SIGN,
    inner_scale: float = 1.0,
    rest_scale: float = 1.0,
) -> Transform:
    r"""``inner`` on a part of the gradient, the state-free ``rest`` on all else; a new part every so often.

    .. math:: u = \alpha\, \mathrm{up}(\mathrm{inner}(\mathrm{down}(g)))
        + \gamma\, \mathrm{rest}(g - \mathrm{up}(\mathrm{down}(g)))

    With the part, the state of ``inner`` and the clock of its bias correction start anew. Which part comes
    next depends on step and parameter only, so that a resumed run and all ranks agree. Tensors that are not
    matrices, and groups with ``density`` 1 or more, go through ``inner`` in full.

    Args:
        by: what the part is: random ``columns`` or ``rows``, a ``random`` orthonormal subspace of the smaller
            side, that of the leading singular vectors (``svd``), or ``blocks``: whole parameters.
        density: share of columns, rows, directions or parameters that have state, in (0, 1]; at least one.
        every: steps between two choices.
        inner: a transform that works on one tensor by itself.
        rest: an element-wise transform without state, of which zero moves by zero.
        inner_scale, rest_scale: :math:`\alpha, \gamma`, at least 0; the paper fine-tunes with
            :math:`\gamma` = 0.1.

    State: ``inner``'s slots, shaped like the part; ``part``: the chosen indices or the basis.
    """
    check_inner("inner", inner, weights=False)
    check_inner("rest", rest, ("element",))
    if rest.slots:
        raise ValueError(f"rest must keep no state, as optim.sign() is, got {rest!r}")
    check_choice("by", by, KINDS)
    check_number("density", density, 0, 1, "(]")
    check_count("every", every)
    check_not_negative("inner_scale", inner_scale)
    check_not_negative("rest_scale", rest_scale)

    def length(p, k):
        side = {"columns": p.shape[1], "rows": p.shape[0]}.get(by, min(p.shape))
        return max(1, round(k.density * side))

    def low(p, k):
        if by == "blocks":
            return p.new_empty(0)
        count = length(p, k)
        across = by == "columns" or (by in ("random", "svd") and tall(p))
        return p.new_empty((p.shape[0], count) if across else (count, p.shape[1]))

    def first(p, k):
        if by in ("random", "svd"):
            return p.new_zeros(min(p.shape), length(p, k))
        return torch.zeros(length(p, k) if by != "blocks" else 1, dtype=torch.int64, device=p.device)

    def choose(u, k):
        """The part for the interval that begins, as it is kept in the state."""
        count, random = length(u, k), source(k, every)
        if by == "blocks":
            return torch.tensor([int(chosen_blocks(k, k.density, every))], device=u.device)
        if by in ("columns", "rows"):
            return (
                torch.randperm(u.shape[by == "columns"], generator=random)[:count].sort().values.to(u.device)
            )
        if by == "svd":
            return leading(u, count, "randomized", k)
        noise = torch.randn(min(u.shape), count, generator=random, dtype=u.dtype)
        return torch.linalg.qr(noise).Q.to(u.device)

    def taken(u: Tensor, kept: Tensor) -> Tensor:
        if by == "blocks":
            return u if kept.item() else u.new_empty(0)
        return down(u, kept) if by in ("random", "svd") else u.index_select(int(by == "columns"), kept)

    def put(total: Tensor, r: Tensor, kept: Tensor, factor: float) -> None:
        """Write ``factor`` times the part ``r`` where it belongs in ``total``; a subspace's is added."""
        if by in ("random", "svd"):
            add_up(total, r, kept, factor)
        elif by == "columns":
            total.scatter_(1, kept.expand(len(total), -1), r.mul_(factor))
        elif by == "rows":
            total.index_copy_(0, kept, r.mul_(factor))

    def resting(k, out, u):
        """The rest's own update, of ``u`` or of ``out`` itself."""
        u = out if u is None else u
        # What is zero in exact arithmetic must not become a full-size sign.
        left = torch.where(u.abs() <= k.least, 0.0, u)
        free, _ = rest.update(left, None, State({}), Scalars({**k.values, "gradient": left}))
        out.copy_(free * k.rest_scale)

    def update(u, p, state, k):
        clock = (k.step - 1) % every + 1
        if clock == 1 and (by != "svd" or finite(u)):
            kept = choose(u, k).to(state.part.dtype)
            state = state.replace(part=kept, **anew(taken(u, kept), state, k))
        kept = state.part.to(u.dtype) if by in ("random", "svd") else state.part
        if by == "blocks" and kept.item():
            moved, state = run_inner(inner, u, None, state, k, owned=k.owned)
            return moved.mul_(k.inner_scale), state
        inside = taken(u, kept)
        out, left, least = (u if k.owned else torch.empty_like(u)), u, -1.0
        if by in ("random", "svd"):
            least = NOISE * torch.linalg.vector_norm(u, torch.inf).item()
            left = torch.addmm(u, *factors(inside, kept, u), alpha=-1.0, out=out)
        numbers = Scalars({**k.values, "least": least})
        entries("rest", made(rest), resting, numbers, out, None if left is out else left)
        moved, state = run_inner(inner, inside, None, state, k, owned=True)
        put(out, moved, kept, k.inner_scale)
        return out, state

    def anew(part, state, k):
        """The first values of ``inner``'s state, in the memory of the last ones where they fit."""
        first = {}
        for slot in inner.slots:
            old, make = state.slots[slot], inner.fresh.get(slot)
            same = make is None and old.shape == part.shape
            first[slot] = old.zero_() if same else make(part, k) if make else torch.zeros_like(part)
        return first

    def scalars(k):
        clock = Scalars({**k.values, "step": (k.step - 1) % every + 1})
        return dict(inner.scalars(clock)) if inner.scalars else {}

    def precondition(state, k):
        p, kept = k.parameter, state.part
        # A sign moves by no multiple of its gradient.
        linear = rest.stability is not None or not k.rest_scale
        outside = torch.full_like(p, float(k.rest_scale)) if linear else None
        if by == "blocks" and not kept.item():
            return outside
        exact = Scalars({"density": float(k.density)})
        template = p if by == "blocks" else low(p, exact)
        inside = diagonal_of(inner, state, Scalars({**k.values, "parameter": template}))
        if inside is None or by == "blocks":
            return inside if inside is None else k.inner_scale * inside
        if outside is None:
            return None
        if by in ("random", "svd"):
            return InSubspace(p.shape, kept, inside, float(k.inner_scale), float(k.rest_scale))
        return outside.index_copy(int(by == "columns"), kept, k.inner_scale * inside)

    fresh: dict[str, Any] = {"part": first, **inner_slots(inner, low)}
    return matrix(
        update,
        slots=tuple(fresh),
        fresh=fresh,
        scalars=scalars,
        applies=lambda p, k: is_matrix(p) and k.density < 1,
        otherwise=inner,
        precondition=precondition,
        degree=inner.degree if rest.degree == inner.degree else None,
        density=density,
        inner_scale=inner_scale,
        rest_scale=rest_scale,
        **inner.hyper,
    )
