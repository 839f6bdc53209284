"""Some examples of batches from all over a run so far, to be seen again beside those of the batch at hand."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

from thalweg.probe._example_batch import changed, count, taken

__all__ = ["Earlier"]

HELD = 8
EXAMPLES = 128
# Bytes of what is kept of one batch; where examples are large, these are fewer.
LARGEST = 2**23


class Earlier:
    """Parts of eight batches, each of those that were offered as likely to be among them.

    Args:
        examples: at most so many of a batch, from all over it.
    """

    def __init__(self, examples: int = EXAMPLES) -> None:
        self.examples = examples
        self._held: list[Any] = []
        self._offered = 0
        # Of its own, so that those of the training stay what they are.
        self._random = random.Random(0)

    def offer(self, batch: Any) -> None:
        """Keep a copy of some of its examples, in the place of others if need be, or let it pass."""
        self._offered += 1
        place = len(self._held) if len(self._held) < HELD else self._random.randrange(self._offered)
        if place >= HELD:
            return
        # What has no examples, or none that can be taken out, is not kept: whoever reads it says so.
        with suppress(ValueError, RuntimeError, TypeError, IndexError):
            have = count(batch)
            some = min(have, self.examples, LARGEST * have // max(_size(batch), 1))
            if some:
                step = have // some
                part = taken(batch, have, slice(0, step * some, step))
                self._held[place : place + 1] = [changed(part, lambda t: t.detach().clone())]

    def any(self) -> Any:
        """One of them at random, None if there is none yet."""
        return self._random.choice(self._held) if self._held else None


def _size(part: Any) -> int:
    sizes: list[int] = []
    changed(part, lambda t: sizes.append(t.numel() * t.element_size()))
    return sum(sizes)
