"""Whole numbers of a few bits, packed into bytes without a gap."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(codes: Tensor, bits: int) -> Tensor:
    """Integers in [0, 2^bits) of any shape to ceil(n · bits / 8) bytes, lowest bit first."""
    places = torch.arange(bits, device=codes.device)
    flat = (codes.flatten().long()[:, None] >> places & 1).flatten()
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (flat << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` integers, int64, that :func:`pack` has packed."""
    flat = (packed.long()[:, None] >> torch.arange(8, device=packed.device) & 1).flatten()
    places = torch.arange(bits, device=packed.device)
    return (flat[: count * bits].view(count, bits) << places).sum(1)
