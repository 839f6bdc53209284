"""Whether readings grow exponentially: steadily, far beyond their noise and what they have been."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import median

__all__ = ["Growth", "Losses", "Series"]

BLOCKS = 4
EARLIER = 64
FIRST = 10


@dataclass(frozen=True)
class Growth:
    """How a series grew over its latest readings, which make four blocks.

    Attributes:
        began: step of the first of them.
        rose: step of the last of them that was as low as the first block, but for noise: it grew from there.
        times: median of the last block of readings over that of the first.
        least, most: the smallest and the largest factor from one block's median to the next.
        steady: the last factor from block to block over the first; near 1 for an exponential, below 1 for
            growth that slows down.
        record: median of the last block over the largest of the 64 readings before the first block, the
            median of the run's first ten and of any three in a row since; infinite if there were none before.
        noise: robust standard deviation of the logarithm from one reading to the next, without the trend.
    """

    began: int
    rose: int
    times: float
    least: float
    most: float
    steady: float
    record: float
    noise: float

    @property
    def linear(self) -> float:
        """What ``steady`` is if the series grows by the same amount from block to block."""
        step = (self.times - 1) / (BLOCKS - 1)
        return self.times / (self.times - step) / (1 + step)

    @property
    def sudden(self) -> float:
        """The share of the growth that came from one block to the next, on a scale of logarithms."""
        return math.log(self.most) / math.log(self.times)

    @property
    def falls(self) -> bool:
        """Whether it falls rather than grows, by half its noise at least."""
        return math.log(self.times) < -0.5 * self.noise


class Series:
    """The latest readings of one number.

    Medians of blocks and not single readings: one spike is no growth.
    """

    def __init__(self, block: int):
        self.block = block
        self.past: deque[tuple[int, float]] = deque(maxlen=BLOCKS * block + EARLIER)
        self.first: list[float] = []
        # Of the readings that are no longer kept: the last three, and the highest that three have been.
        self.left: deque[float] = deque(maxlen=3)
        self.peak = 0.0

    def add(self, step: int, value: float) -> None:
        """Take a reading; one that is not a positive number is left out."""
        if math.isfinite(value) and value > 0:
            if len(self.past) == self.past.maxlen:
                self.left.append(self.past[0][1])
                self.peak = max(self.peak, sorted(self.left)[(len(self.left) - 1) // 2])
            self.past.append((step, value))
            if len(self.first) < FIRST:
                self.first.append(value)

    @property
    def ratio(self) -> float:
        """The latest reading over that which stands at the beginning of the four blocks; 0 before them."""
        count = BLOCKS * self.block
        return self.past[-1][1] / self.past[-count][1] if len(self.past) >= count else 0.0

    def growth(self) -> Growth | None:
        """Of the latest four blocks; None until there are as many."""
        count = BLOCKS * self.block
        if len(self.past) < count:
            return None
        before = len(self.past) - count
        earlier = [value for _, value in islice(self.past, before)]
        latest = list(islice(self.past, before, None))
        values = [value for _, value in latest]
        blocks = [median(values[start : start + self.block]) for start in range(0, count, self.block)]
        factors = [after / now for now, after in pairwise(blocks)]
        changes = [math.log(after / now) for now, after in pairwise(values)]
        trend = median(changes)
        noise = 1.4826 * median(abs(change - trend) for change in changes)
        # A gradient that had all but died away and comes back is no explosion.
        record = blocks[-1] / max(*earlier, median(self.first), self.peak) if earlier else math.inf
        level = blocks[0] * math.exp(noise)
        return Growth(
            latest[0][0],
            max((step for step, value in latest if value <= level), default=latest[0][0]),
            blocks[-1] / blocks[0],
            min(factors),
            max(factors),
            factors[-1] / factors[0],
            record,
            noise,
        )


class Losses(Series):
    """The losses of a run. Once one is below zero factors say nothing; what is left is whether they fall."""

    def __init__(self, block: int):
        super().__init__(block)
        self.negative = False
        self.latest: deque[float] = deque(maxlen=BLOCKS * block)

    def add(self, step: int, value: float) -> None:
        if not math.isfinite(value):
            return
        self.latest.append(value)
        self.negative = self.negative or value < 0
        super().add(step, value)

    @property
    def ratio(self) -> float:
        return 0.0 if self.negative else super().ratio

    def growth(self) -> Growth | None:
        return None if self.negative else super().growth()

    @property
    def fall(self) -> bool:
        """Whether the latest four blocks fall, by half their noise at least; False before there are four."""
        if not self.negative:
            grown = self.growth()
            return grown is not None and grown.falls
        values = list(self.latest)
        if len(values) < BLOCKS * self.block:
            return False
        changes = [after - now for now, after in pairwise(values)]
        trend = median(changes)
        noise = 1.4826 * median(abs(change - trend) for change in changes)
        return median(values[-self.block :]) - median(values[: self.block]) < -0.5 * noise
