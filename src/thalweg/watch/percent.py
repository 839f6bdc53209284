"""Accuracies as shares, whether they were logged as shares or in percent."""

from __future__ import annotations

from dataclasses import replace

from thalweg.watch.readings import Reading

__all__ = ["Accuracies"]

# No share is above 1; what rounding adds is no percent.
PERCENT, MOST = 1.5, 100.0


class Accuracies:
    """Once an accuracy of a run is above 1.5, and at most 100, all of them are percent."""

    def __init__(self) -> None:
        self.percent = False

    def share(self, reading: Reading) -> Reading | None:
        """The reading with its value in [0, 1]; None of an accuracy that is none. Others stay as they are."""
        if not reading.name.endswith("accuracy") or not reading.finite:
            return reading
        self.percent = self.percent or PERCENT < reading.value <= MOST
        value = reading.value / MOST if self.percent else reading.value
        if not 0 <= value <= 1 + 1e-6:
            return None
        return replace(reading, value=value) if self.percent else reading
