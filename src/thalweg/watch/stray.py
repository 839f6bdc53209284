"""Whether a run has lost sight of the training: losses arrive, and no optimizer that it watches steps."""

from __future__ import annotations

import warnings

from thalweg.watch.readings import Finding
from thalweg.watch.recorder import Recorder

__all__ = ["NothingSteps", "Stray"]

# So many losses without a step, or four times the most that there were between two; more before the first.
LOSSES, TIMES, AT_FIRST = 50, 4, 500


class NothingSteps(UserWarning):
    """Losses arrive, and no optimizer that is watched has stepped for long."""


class Stray:
    """Counts the losses since the last step, and says once when there are far too many.

    Args:
        start: steps taken before.
    """

    def __init__(self, recorder: Recorder, start: int):
        self.recorder, self.start = recorder, start
        self._at = -1
        self._losses = self._most = 0
        self._said = False

    def loss(self, step: int) -> None:
        """A loss was logged after ``step`` steps that is not the first since then."""
        if step != self._at:
            self._at, self._most, self._losses = step, max(self._most, self._losses), 1
        self._losses += 1
        allowed = max(LOSSES, TIMES * self._most) if step > self.start else AT_FIRST
        if self._said or self._losses <= allowed:
            return
        self._said = True
        message = (
            f"{self._losses} losses were logged since the last step of a watched optimizer, step {step}: "
            "was it replaced? run.follow(opt) watches the new one from here on"
        )
        self.recorder.report(Finding("no watched optimizer steps", step, message, {}, "warning", found=step))
        warnings.warn(f"thalweg: {message}", NothingSteps, stacklevel=4)
