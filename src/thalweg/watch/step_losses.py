"""The losses that were logged for one step, as of accumulated batches, are one reading: their mean."""

from __future__ import annotations

import math

__all__ = ["StepLosses"]

# (when, step, loss), ``when`` in epoch seconds.
Loss = tuple[float, int, float]


class StepLosses:
    """Adds up the losses of a step until there can be no more of them; what is due comes out in order."""

    def __init__(self) -> None:
        self._step, self._when, self._sum, self._count = -1, 0.0, 0.0, 0
        self._named = self._bad = False

    def add(self, when: float, step: int, loss: float, named: bool) -> tuple[Loss, ...]:
        """Take a loss; gives that of the step before, and at once what is not finite, once a step.

        A loop that leaves steps out as long as its losses are not finite would hide them otherwise.

        Args:
            named: the loop said which step it is of, which may be one that has begun.
        """
        due: tuple[Loss, ...] = ()
        if step != self._step:
            due = self.end()
            self._step, self._bad = step, False
        self._named = named
        if not math.isfinite(loss):
            if not self._bad:
                self._bad = True
                due = (*due, (when, step, loss))
            return due
        if not self._count:
            self._when = when
        self._sum += loss
        self._count += 1
        return due

    def begun(self, step: int) -> tuple[Loss, ...]:
        """A step has begun, with the losses that are its own: gives the loss of which no part can follow."""
        over = self._step < step or (self._step == step and not self._named)
        return self.end() if over else ()

    def end(self) -> tuple[Loss, ...]:
        """What is left."""
        if not self._count:
            return ()
        mean, self._sum, self._count = self._sum / self._count, 0.0, 0
        return ((self._when, self._step, mean),)
