"""A reading's course in at most 96 blocks of steps, and whether the latest left the way it was going."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np

__all__ = ["Blocks", "Departure"]

MOST = 96
SMALLEST = 4
BEFORE = 24
AFTER = 6
# A quick look at so many of the blocks before settles most readings without fitting a line.
NEAR = 8
# From so few blocks on their own spread can be told.
ENOUGH = 5


@dataclass(frozen=True)
class Departure:
    """The latest blocks against those before.

    Attributes:
        size: median distance of the latest blocks from the way before.
        spreads: the distance that three in four of them exceed, in robust standard deviations: those of the
            blocks before, around their line, and of the latest, as a quadratic mean.
        level: median of the blocks just before.
        step: first of the earliest block that is half as far away.
    """

    size: float
    spreads: float
    level: float
    step: int


class Blocks:
    """Medians over blocks of steps; once there are 96, pairs become one and blocks are twice as long.

    So a departure has to last as long as a sixteenth to an eighth of the run, and follows on a quarter to a
    half of it, however long the run is.

    Args:
        least: a spread smaller than this counts as this.
        share: or than this share of the level.
    """

    def __init__(self, least: float = 0.0, share: float = 0.0) -> None:
        self.least, self.share = least, share
        self.size = SMALLEST
        self.values: list[float] = []
        self._open: list[float] = []

    def add(self, step: int, value: float) -> bool:
        """Take the value of a step, from 1; whether that closed a block. Steps that go back are ignored."""
        index = (step - 1) // self.size
        if index < len(self.values):
            return False
        closed = index > len(self.values)
        if closed:
            self.values.append(median(self._open) if self._open else math.nan)
            self._open = []
        while index >= MOST:
            self._merge()
            index = (step - 1) // self.size
        self.values += [math.nan] * (index - len(self.values))
        self._open.append(value)
        return closed

    def forget(self) -> None:
        """Begin anew: nothing so far counts as the way before."""
        self.values = [math.nan] * len(self.values)

    def departure(self) -> Departure | None:
        """The last six blocks against the 24 before; None where they go on as before, or too few are known.

        The way before is whatever lies between staying at the level of the last blocks and going on along
        their line: a curve that flattens out does not leave it.
        """
        known = self.values[-BEFORE - AFTER :]
        before = [(n, value) for n, value in enumerate(known[:BEFORE]) if value == value]
        after = [(n, value) for n, value in enumerate(known[BEFORE:], BEFORE) if value == value]
        if len(known) < BEFORE + AFTER or len(before) < BEFORE // 3 or len(after) < AFTER // 3:
            return None
        near = [value for _, value in before[-NEAR:]]
        if min(near) <= median(value for _, value in after) <= max(near):
            return None
        level = median(near[-max(3, len(before) // 4) :])
        slope, start, spread = _line(*zip(*before, strict=True))
        away = []
        for n, value in after:
            ahead = start + slope * n
            low, high = min(level, ahead), max(level, ahead)
            away.append(value - high if value > high else min(value - low, 0.0))
        size = median(away)
        if len(after) >= ENOUGH:
            # From step to step, since they may be on their way.
            steps = [b - a for (_, a), (_, b) in pairwise(after)]
            middle = median(steps)
            latest = 1.4826 * median(abs(one - middle) for one in steps) / math.sqrt(2)
            spread = math.sqrt((spread**2 + latest**2) / 2)
        spread = max(spread, self.least, self.share * abs(level))
        if not size or spread <= 0:
            return None
        sizes = sorted(distance * math.copysign(1, size) for distance in away)
        first = next(n for (n, _), off in zip(after, away, strict=True) if off / size >= 0.5)
        step = (len(self.values) - len(known) + first) * self.size + 1
        return Departure(size, max(sizes[len(sizes) // 4], 0.0) / spread, level, step)

    def _merge(self) -> None:
        if len(self.values) % 2:
            self.values.append(math.nan)
        pairs = zip(self.values[::2], self.values[1::2], strict=True)
        self.values = [_mean([one for one in pair if one == one]) for pair in pairs]
        self.size *= 2


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _line(steps: Sequence[int], values: Sequence[float]) -> tuple[float, float, float]:
    """Slope and start of a line that outliers move little, and the robust standard deviation around it."""
    x, y = np.asarray(steps, float), np.asarray(values)
    weights = np.ones_like(x)
    for _ in range(2):
        total = weights.sum()
        center, mean = (weights * x).sum() / total, (weights * y).sum() / total
        slope = (weights * (x - center) * (y - mean)).sum() / (weights * (x - center) ** 2).sum()
        off = np.abs(y - mean - slope * (x - center))
        spread = 1.4826 * float(np.median(off))
        weights = 1 / (1 + off / (spread + 1e-300)) ** 2
    return float(slope), float(mean - slope * center), spread
