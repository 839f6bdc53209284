"""Numbers in 8 or 4 bits, by blocks that share a scale.

Two codes. State is stored against a table of 2^bits values in [-1, 1], dense near zero, times the block's
largest magnitude (the dynamic tree of arXiv 2110.02861). Weights and projections are stored on an even grid
with a zero point (arXiv 2407.08296).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from thalweg.optim._codes import Code, state_code, tree


def state_table(bits: int, signed: bool) -> Tensor:
    """What state is stored against."""
    return table_of(state_code(bits, signed), torch.device("cpu"))


def dynamic_table(bits: int, signed: bool) -> Tensor:
    """2^bits values in increasing order, in [-1, 1] or [0, 1]: decades, each divided evenly, and 0 and 1."""
    return table_of(tree(bits, signed), torch.device("cpu"))


@functools.cache
def table_of(code: Code, device: torch.device) -> Tensor:
    """All values of a code, in increasing order."""
    return code.values(torch.arange(2**code.bits)).to(device)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes as bytes: as they are, or two of 4 bits to a byte; a last odd one is filled up with 0."""
    if bits == 8:
        return codes
    if len(codes) % 2:
        codes = torch.cat([codes, codes.new_zeros(1)])
    pairs = codes.contiguous().view(torch.int16)  # the first of two is the low byte on all our machines
    return ((pairs | (pairs >> 4)) & 255).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The first ``count`` codes of what :func:`pack` gave."""
    if bits == 8:
        return packed[:count]
    pairs = packed.to(torch.int16)
    return ((pairs | (pairs << 4)) & 0x0F0F).view(torch.uint8)[:count]


def by_block(x: Tensor, block: int) -> Tensor:
    """A flat tensor as (blocks, ``block``), the last one filled up with zeros."""
    missing = -len(x) % block
    return (torch.nn.functional.pad(x, (0, missing)) if missing else x).view(-1, block)


DROPPED = 14  # low bits of a float32 that the first guess at its code ignores


@functools.cache
def _guesses(table: Tensor) -> tuple[Tensor, Tensor]:
    """For the high bits of a float32 the least code that it may have, and where each code ends.

    No two codes end between two floats with the same high bits: a code is the guess or the next.
    """
    ends = torch.cat([(table[1:] + table[:-1]) / 2, table.new_full((1,), torch.inf)])
    high = torch.arange(1 << (32 - DROPPED), device=table.device)
    bits = high << DROPPED
    bits = torch.where(bits < 1 << 31, bits, (bits | ((1 << DROPPED) - 1)) - (1 << 32))
    least = bits.to(torch.int32).view(torch.float32)
    return torch.bucketize(least, ends[:-1]).to(torch.uint8), ends


def look_up(unit: Tensor, table: Tensor) -> Tensor:
    """The code of the nearest value of the table; halfway between two, the lower."""
    # A look-up by the high bits, then one comparison: ten times as fast as a binary search.
    guesses, ends = _guesses(table)
    high = (unit.view(torch.int32) >> DROPPED) & ((1 << (32 - DROPPED)) - 1)
    guess = guesses.index_select(0, high)
    return guess + (unit > ends.index_select(0, guess.int()))


def scaled(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The blocks (rows) as float32 in [-1, 1], and the scale of each."""
    scale = blocks.abs().amax(dim=1)
    return (blocks / scale.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).float(), scale


def to_table(x: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Codes (uint8, as many as ``x``) and scale of each block; nearest value of the table."""
    unit, scale = scaled(by_block(x, block))
    return look_up(unit.view(-1)[: len(x)], table), scale


def from_table(codes: Tensor, scale: Tensor, table: Tensor, block: int) -> Tensor:
    """The float32 numbers that codes and scales stand for."""
    values = table.index_select(0, codes.int())
    return (by_block(values, block) * scale[:, None]).view(-1)[: len(codes)]


def store(code: Code, blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and the scale of each row, of blocks of numbers."""
    unit, scale = scaled(blocks)
    if torch.compiler.is_compiling():
        return code.nearest(unit), scale
    return look_up(unit.view(-1), table_of(code, unit.device)).view(unit.shape), scale


def read(codes: Tensor, table: Tensor) -> Tensor:
    """The values of a table that codes stand for."""
    return table.index_select(0, codes.view(-1).int()).view(codes.shape)


def to_grid(x: Tensor, bits: int, group: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (uint8), step and zero point of each group of ``group`` consecutive numbers.

    The grid of a group always holds 0, so that a group of one sign keeps its values. With ``noise``,
    uniform in [0, 1) and as long as ``x``, rounding is up with the probability of the remainder.
    """
    rounding = None if noise is None else by_block(noise, group)
    codes, step, zero = grid_of(by_block(x, group), bits, rounding)
    return codes.to(torch.uint8).view(-1)[: len(x)], step, zero.to(torch.uint8)


def grid_of(groups: Tensor, bits: int, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The same for groups as rows, in floating point."""
    top = 2**bits - 1
    low, high = groups.amin(dim=1).clamp_max(0), groups.amax(dim=1).clamp_min(0)
    step = (high - low).clamp_min(torch.finfo(torch.float32).tiny * top) / top
    zero = (-low / step).round().clamp(0, top)
    place = groups / step[:, None]
    place = place.round() if noise is None else (place + noise).floor()
    return (place + zero[:, None]).clamp(0, top), step, zero


def from_grid(codes: Tensor, step: Tensor, zero: Tensor, group: int) -> Tensor:
    """The float32 numbers that codes, steps and zero points stand for."""
    return ((by_block(codes, group).float() - zero.float()[:, None]) * step[:, None]).view(-1)[: len(codes)]
