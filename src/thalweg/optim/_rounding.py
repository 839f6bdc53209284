"""Writing weights in 16 bits: to nearest, stochastically, or with the error kept (Kahan).

The noise of stochastic rounding is a hash of tensor, step and place, so a resumed, a compiled and an eager
run round alike, and no random state has to be saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = ("none", "stochastic", "kahan")
_WORD = 0xFFFFFFFF


def hashed_bits(places: Tensor, seed: Tensor) -> Tensor:
    """16 uniform bits for every place (int64), by rounds of multiply and shift on 32-bit words."""
    x = (places + seed * 0x9E3779B1) & _WORD
    for multiplier, shift in ((0x7FEB352D, 15), (0x46D22C69, 13), (0x5BD1E995, 16)):
        x = ((x ^ (x >> shift)) * multiplier) & _WORD
    return (x >> 16) & 0xFFFF


def round_stochastically(x: Tensor, seed: Tensor, offset: Tensor) -> Tensor:
    """Round float32 ``x`` to one of its two bfloat16 neighbours, each with probability by nearness."""
    places = torch.arange(x.numel(), device=x.device).view(x.shape) + offset
    bits = x.view(torch.int32)
    noisy = (bits + hashed_bits(places, seed).to(torch.int32)) & -65536
    return torch.where(x.isfinite(), noisy.view(torch.float32), x).to(torch.bfloat16)


def write(exact: Tensor, like: Tensor, rounding: str, lost: Tensor | None, seed: Tensor, offset: Tensor):
    """The weights to store for ``exact``, and what storing them loses (for Kahan; else None)."""
    if rounding == "kahan" and lost is not None:
        exact = exact + lost
        stored = exact.to(like.dtype)
        return stored, exact - stored.to(exact.dtype)
    if rounding == "stochastic" and like.dtype == torch.bfloat16:
        return round_stochastically(exact, seed, offset), None
    return exact.to(like.dtype), None
