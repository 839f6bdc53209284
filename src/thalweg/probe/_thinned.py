"""A part of many entries that stands for all of them."""

from __future__ import annotations

import math

from torch import Tensor


def thinned(entries: Tensor, count: int) -> Tensor:
    """At most ``count`` entries along the first dimension, evenly spread.

    Their distance has no divisor in common with how many there are: else of a flattened matrix, image or
    batch of sequences the same few columns or positions would be seen.
    """
    return entries[:: distance(len(entries), count)]


def distance(size: int, count: int) -> int:
    """From one entry to the next, for at most ``count`` of ``size``, as :func:`thinned` takes them."""
    stride = max(1, -(-size // count))
    while stride > 1 and math.gcd(stride, size) > 1:
        stride += 1
    return stride
