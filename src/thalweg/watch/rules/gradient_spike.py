"""A gradient far above its recent past (SPAM, arXiv 2501.06842)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import clip, instead, rate_for_adam
from thalweg.watch.rule import Rule

MEMORY = 64
ENOUGH = 20
LATEST = 5
TIMES = 6.0
SPREADS = 5.0
BEYOND = 3.5
QUIET = 200
FITTED = 0.1


class GradientSpike(Rule):
    """The norm exceeds 6 times its median, 5 robust standard deviations and 3.5 times its highest value.

    Median and spread (in logarithms) are those of the last 64 readings; the highest is that of the same but
    the last 5, so that a gradient that grows over a few steps is seen too. A model that fits most batches
    gets many times the usual gradient from the others, again and again: those are no spikes, and where the
    loss is down to a tenth none is that is no larger than the gradients of the run's first steps: the one
    example that is not fitted yet has the gradient that all had then. After a finding
    the next 200 steps' spikes are counted, not reported; the spike itself enters the memory, so that a
    lasting rise is one finding.
    """

    name = "gradient spike"
    reads = ("loss", "gradient norm")

    def __init__(self, about):
        super().__init__(about)
        self.past: deque[Reading] = deque(maxlen=MEMORY)
        self.first: list[float] = []
        self.first_losses: list[float] = []
        self.losses: deque[float] = deque(maxlen=ENOUGH)
        self.reported = -math.inf
        self.count = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        if reading.name == "loss":
            self._hear(reading)
            return
        if not reading.finite or reading.value <= 0:
            return
        if len(self.first) < ENOUGH:
            self.first.append(reading.value)
        past = list(self.past)
        self.past.append(reading)
        # The smallest of the past is below the median: most readings are settled without sorting.
        if len(past) < ENOUGH or reading.value < TIMES * min(one.value for one in past):
            return
        usual = median(one.value for one in past)
        logs = [math.log(one.value / usual) for one in past]
        spread = 1.4826 * median(map(abs, logs)) + 0.05
        highest = max(one.value for one in past[:-LATEST])
        threshold = max(TIMES, math.exp(SPREADS * spread), BEYOND * highest / usual)
        if reading.value < threshold * usual or (self._fitted() and reading.value <= median(self.first)):
            return
        self.count += 1
        if reading.step - self.reported < QUIET:
            return
        self.reported = reading.step
        yield Finding(
            self.name,
            reading.step,
            f"gradient norm {reading.value:.3g} is {reading.value / usual:.3g} times the median of the last "
            f"{len(past)} readings ({usual:.3g}).",
            {
                "gradient norm": reading.value,
                "median": usual,
                "times median": reading.value / usual,
                "threshold": threshold,
                "spikes so far": float(self.count),
            },
            "warning",
            self._worst(reading, past),
            ("spam", "gradient-clipping", "opposing-signals"),
            self._remedies(usual),
        )

    def _hear(self, loss: Reading) -> None:
        if loss.finite:
            self.losses.append(loss.value)
            if len(self.first_losses) < ENOUGH:
                self.first_losses.append(loss.value)

    def _fitted(self) -> bool:
        """Whether the loss is known to be down to a tenth; below zero it has no scale for that."""
        if len(self.losses) < ENOUGH or min(self.losses) < 0:
            return False
        return median(self.losses) <= FITTED * median(self.first_losses)

    def _worst(self, reading: Reading, past: list[Reading]) -> tuple[str, ...]:
        """The three layers that rose most against their own median."""
        rises = {}
        for name, value in reading.layers.items():
            usual = median(one.layers.get(name, 0.0) for one in past)
            rises[name] = value / usual if usual > 0 else 0.0
        return tuple(sorted(rises, key=lambda name: -rises[name])[:3])

    def _remedies(self, usual: float) -> tuple[Remedy, ...]:
        clipped = clip(self.about, 2 * usual, why=", here at twice its median")
        if not self.adaptive:
            return (clipped,)
        title, rate = "Adam that cuts spikes entry by entry", rate_for_adam(self.about, self.adaptive)
        return clipped, instead(
            f"{title} and resets its momentum", "SPAM(groups, threshold=50)", "spam", rate
        )
