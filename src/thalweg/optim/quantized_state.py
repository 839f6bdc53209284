"""Optimizer state in 8 or 4 bits, block by block (arXiv 2110.02861, 2309.01507)."""

from __future__ import annotations

from itertools import chain

import torch

from thalweg._core.checks import check_choice, check_count
from thalweg.optim._blocks import by_block, pack, read, store, table_of, unpack
from thalweg.optim._codes import state_code
from thalweg.optim._kernel import made
from thalweg.optim._loop import loop
from thalweg.optim._nested import check_inner
from thalweg.optim.transform import Scalars, State, Transform, part, whole

__all__ = ["quantized"]

CHUNK = 1 << 17
# Slots that are never negative: their table spends no value on negative numbers.
POSITIVE = ("square", "largest_square")


@part
def quantized(inner: Transform, bits: int = 8, block: int | None = None, smallest: int = 4096) -> Transform:
    r"""Run ``inner`` with its state stored in ``bits`` bits a number and one float32 scale a block.

    State is unpacked, updated and packed again a chunk at a time, so that no full-size copy of it exists.
    8 bits use the signed or, for mean squares, unsigned dynamic tree. 4 bits use the same for signed slots
    and :math:`1/16 \dots 16/16` for mean squares: a table with a zero would let a mean square round to
    zero and the step explode.

    Args:
        inner: an element-wise transform such as ``adam()``.
        bits: 8 or 4.
        block: numbers that share a scale; 256 with 8 bits and 128 with 4 by default.
        smallest: parameters with fewer elements keep ``inner``'s state in full; inside ``project()`` and its
            like, where the state is small already, all is quantized.

    State: for each slot of ``inner`` its codes (uint8, ``bits`` / 8 bytes a number) and ``_scale`` (float32,
    one a block).
    """
    check_inner("inner", inner, ("element",))
    check_choice("bits", bits, (8, 4))
    check_count("smallest", smallest, low=0)
    size = (256 if bits == 8 else 128) if block is None else block
    check_count("block", size)
    if CHUNK % size:
        raise ValueError(f"block must divide {CHUNK}, got {size}")
    if size * bits % 8:
        raise ValueError(f"block must be at least 2 with 4 bits, got {size}")

    def count(p):
        return p.numel() * (2 if p.is_complex() else 1)

    def codes(p, k):
        return torch.zeros(-(-count(p) * bits // 8), dtype=torch.uint8, device=p.device)

    def scales(p, k):
        return torch.zeros(-(-count(p) // size), dtype=torch.float32, device=p.device)

    kinds = [state_code(bits, slot not in POSITIVE) for slot in inner.slots]

    def step(k, out, u, weights, *stored):
        """One step of some blocks: ``out`` becomes the update of ``u``.

        All are (blocks, size) but for ``stored``: codes, scales (blocks,), room for new scales and table of
        each slot. A loop that read and wrote the same scales would have to be three.
        """
        assert out.shape[1] == size  # a constant, once compiled
        u = out if u is None else u
        kept = list(
            zip(inner.slots, kinds, stored[::4], stored[1::4], stored[2::4], stored[3::4], strict=True)
        )
        full = {
            slot: (read(one, table) * scale[:, None]).to(u.dtype) for slot, _, one, scale, _, table in kept
        }
        update, new = inner.update(u, weights, State(full), Scalars({**k.values, "gradient": u}))
        for slot, code, one, _, scale, _ in kept:
            number, scale_of = store(code, new.slots[slot])
            one.copy_(number)
            scale.copy_(scale_of)
        out.copy_(update)

    def update(u, p, state, k):
        flat = u.reshape(-1)
        out = flat if k.owned else torch.empty_like(flat)
        moving = [out, None if out is flat else flat, None if p is None else p.reshape(-1)]
        for start in range(0, len(flat), CHUNK):
            chunk(k, start, [one if one is None else one[start : start + CHUNK] for one in moving], state)
        return out.view_as(u), state

    def chunk(k, start, moving, state):
        count, end = len(moving[0]), start + CHUNK
        missing = -count % size
        packed = [state.slots[slot][start * bits // 8 : end * bits // 8] for slot in inner.slots]
        scales_of = [state.slots[f"{slot}_scale"][start // size : end // size] for slot in inner.slots]
        codes_of = [unpack(one, bits, count) for one in packed]

        def blocks(one):
            """As (blocks, size); the last one is filled up with its last number, which changes no scale."""
            if one is None:
                return None
            return (torch.cat([one, one[-1:].expand(missing)]) if missing else one).view(-1, size).data

        filled = [blocks(one) for one in (*moving, *codes_of)]
        tables = [table_of(kind, moving[0].device) for kind in kinds]
        scales = [one.data for one in scales_of]
        new = [torch.empty_like(one) for one in scales]
        stored = chain.from_iterable(zip(filled[len(moving) :], scales, new, tables, strict=True))
        loop(f"{inner.name} in {bits} bits", (made(inner), size), step, k, *filled[: len(moving)], *stored)
        torch._foreach_copy_(scales, new)
        if missing:
            moving[0].copy_(filled[0].view(-1)[:count])
        if missing or bits < 8:
            for one, new in zip(packed, filled[len(moving) :], strict=True):
                one.copy_(pack(new.view(-1)[:count], bits))

    def precondition(state, k):
        assert inner.precondition is not None
        shape = k.parameter.shape
        full = {}
        for slot, kind in zip(inner.slots, kinds, strict=True):
            number = unpack(state.slots[slot], bits, count(k.parameter))
            values = by_block(read(number, table_of(kind, number.device)), size)
            scaled = values * state.slots[f"{slot}_scale"][:, None]
            full[slot] = scaled.reshape(-1)[: count(k.parameter)].view(shape)
        return inner.precondition(State(full), k)

    return whole(
        update,
        slots=tuple(name for slot in inner.slots for name in (slot, f"{slot}_scale")),
        fresh={
            name: make for slot in inner.slots for name, make in ((slot, codes), (f"{slot}_scale", scales))
        },
        scalars=inner.scalars,
        applies=lambda p, k: count(p) >= smallest,
        otherwise=inner,
        precondition=precondition if inner.precondition else None,
        stability=inner.stability,
        degree=inner.degree,
        **inner.hyper,
    )
