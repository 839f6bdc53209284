"""The losses that were logged for one step, as of accumulated batches, are one reading: their mean."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["StepLosses"]

# (when, step, loss), ``when`` in epoch seconds.
Loss = tuple[float, int, float]


class StepLosses:
    """Adds up the losses of a step until there can be no more of them; what is due comes out in order."""

    def __init__(self) -> None:
        self._step, self._when, self._sum, self._count = -1, 0.0, 0.0, 0
        self._named = self._bad = False

    def add(self, when: float, step: int, loss: float, named: bool) -> Iterator[Loss]:
        """Take a loss; gives that of the step before, and at once what is not finite, once a step.

        A loop that leaves steps out as long as its losses are not finite would hide them otherwise.

        Args:
            named: the loop said which step it is of, which may be one that has begun.
        """
        if step != self._step:
            yield from self.end()
            self._step, self._bad = step, False
        self._named = named
        if not math.isfinite(loss):
            if not self._bad:
                self._bad = True
                yield when, step, loss
            return
        if not self._count:
            self._when = when
        self._sum += loss
        self._count += 1

    def begun(self, step: int) -> Iterator[Loss]:
        """A step has begun, with the losses that are its own: gives the loss of which no part can follow."""
        if self._count and (self._step < step or (self._step == step and not self._named)):
            yield from self.end()

    def end(self) -> Iterator[Loss]:
        """What is left."""
        if self._count:
            mean, self._sum, self._count = self._sum / self._count, 0.0, 0
            yield self._when, self._step, mean
