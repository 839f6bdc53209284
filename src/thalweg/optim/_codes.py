"""The values that state is stored against, and the nearest of them to a number, as arithmetic.

For compiled loops, which do many numbers at once where a look-up does one. Eager torch looks the same values
up (see ``_blocks``), since each operation of its own would go over memory.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

NEXT = 6e-8  # adding this share of it makes a float32 the next one: it is half to one of its units


class Even:
    """16 values in 4 bits, 1/16 to 1: without a zero, lest a mean square vanish."""

    bits = 4

    def values(self, codes: Tensor) -> Tensor:
        return (codes.float() + 1) / 16

    def nearest(self, unit: Tensor) -> Tensor:
        return (unit * 16 - 1.5).ceil().clamp(0, 15).to(torch.uint8)


class Tree:
    """The dynamic tree of arXiv 2110.02861: zero, one, and decades in between, each in twice as many cells.

    A magnitude has the number ``n + place`` in the decade of ``n`` cells up to ``top``, and is the middle of
    its cell: ``(1/10 + 9/10 (place + 1/2) / n) top``. That is ``(18 place + 2 n + 9) / scale`` if ``scale``
    is ``20 n / top``: both are whole numbers, which float32 holds exactly, so that one division rounds right.
    Before the first number stands ``zero``, behind the last stands ``one``.
    """

    def __init__(self, bits: int, signed: bool):
        self.bits, self.signed = bits, signed
        powers = range(bits - 1) if signed else range(1, bits)
        self.decades = [(2.0**i, 20.0 * 2**i * 10 ** (powers[-1] - i)) for i in powers]
        self.zero = 0.0 if signed else 1.0
        self.one = 2.0 ** (powers[-1] + 1)
        self.middle = 2.0 ** (bits - 1) - 1 if signed else -1.0  # the code of the number 0
        # Where zero ends, each decade but the last, and the last cell: halfway to the next value.
        numbers = [self.zero, *(n - 1 for n, _ in self.decades[1:]), self.one - 1]
        codes = torch.tensor(numbers) + self.middle
        self.ends = ((self.values(codes) + self.values(codes + 1)) / 2).tolist()

    def values(self, codes: Tensor) -> Tensor:
        number = codes.float() - self.middle
        size = number.abs()
        n, scale = self._decade([size >= n for n, _ in self.decades[1:]], size)
        value = (18 * size - 16 * n + 9) / scale
        value = torch.where(size <= self.zero, 0.0, torch.where(size >= self.one, 1.0, value))
        return torch.where(number < 0, -value, value)

    def nearest(self, unit: Tensor) -> Tensor:
        """The codes of float32 numbers; halfway between two values, the lower one's."""
        zero, *starts, one = self.ends
        unit = unit if self.signed else unit.clamp_min(0)
        below = unit < 0
        # A negative number's lower neighbour is the larger in size: what is halfway counts as just above.
        size = unit.abs()
        size = size + size * torch.where(below, NEXT, 0.0)
        n, scale = self._decade([size > start for start in starts], size)
        # Rounding cannot take this guess above the cell, and takes it one below at most.
        guess = ((size * scale - 2 * n) * (1 / 18) - 2.0**-10).floor().clamp_min(0).minimum(n - 1)
        whole = 18 * guess + 2 * n + 9
        end = (whole / scale + (whole + 18) / scale) * 0.5
        number = n + guess + ((size > end) & (guess < n - 1)).float()
        number = torch.where(size > zero, number, self.zero)
        number = torch.where((size > one) & ~below, self.one, number)
        return (self.middle + torch.where(below, -number, number)).to(torch.uint8)

    def _decade(self, reached: list[Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
        """``n`` and ``scale`` of the last decade that was reached."""
        n, scale = (torch.full_like(like, first) for first in self.decades[0])
        for there, (more, other) in zip(reached, self.decades[1:], strict=True):
            n, scale = torch.where(there, more, n), torch.where(there, other, scale)
        return n, scale


Code = Tree | Even


@functools.cache
def tree(bits: int, signed: bool) -> Tree:
    return Tree(bits, signed)


@functools.cache
def state_code(bits: int, signed: bool) -> Code:
    """What state is stored against."""
    return Even() if bits == 4 and not signed else tree(bits, signed)
