"""The loss jumps out of its recent past, and what came before that."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import clip, instead, lower, rate_for_adam, seen, warmed
from thalweg.watch.rule import Rule
from thalweg.watch.spike_causes import READ, Cause, History, cause_of

MEMORY = 128
LATEST = 32
RECENT = 10
# From the middle of LATEST until now.
APART = LATEST // 2 + RECENT
FEW = 8
# In a normal distribution this share lies below so many standard deviations above the mean.
HIGH, DEVIATIONS = 0.95, 1.645
# The threshold is reckoned anew after so many losses, and whenever one is above it.
RENEW = 8
ENOUGH = 20
SPREADS = 5.0
BEYOND = 1.25
SHARE = 0.2
ALONE = 2.5
# Readings right before a jump whose middle is so much of the way to the threshold are on the way there.
LEADING, ON_ITS_WAY = 3, 0.25
AFTER = 3
LASTING = 2
QUIET = 100

PAPERS = {
    "learning rate": ("loss-curvature", "sgd-dynamical-stability"),
    "second moment": ("spam", "amsgrad", "loss-curvature"),
    "bad batch": ("spam", "gradient-clipping", "opposing-signals"),
    "attention logits": ("small-scale-proxies", "loss-curvature"),
    "sharpness": ("loss-curvature", "sgd-dynamical-stability", "opposing-signals"),
    "new data": ("latent-training-states", "gradient-clipping"),
    "unknown": ("gradient-clipping", "opposing-signals"),
}


class LossSpike(Rule):
    """The loss is above its median by 5 robust standard deviations and by a fifth of what was gained so far.

    Or of what is left to gain, where that is more. And by 1.25 times what any of the 128 readings before has
    been, or what the loss has come back from below; the 10 latest are not among them, so that a loss that
    climbs within a few steps counts too. A loss that wanders, as that of a generator against its
    discriminator, has the deviations of its rises over as many steps as are compared, and one that climbs for
    longer is measured from where it was going. It is told three steps later, if two of the three are as high.
    A reading that stands alone must be far higher, since a hard batch does no harm, and so must one to which
    a loss that wanders had been on its way.
    """

    name = "loss spike"
    reads = ("loss", *READ)

    def __init__(self, about):
        super().__init__(about)
        self.past: deque[Reading] = deque(maxlen=MEMORY + RECENT)
        self.first: list[float] = []
        self.history = History()
        self.spike: tuple[Reading, float, float] | None = None
        self.waited = self.high = 0
        self.swing = self.alone = self.far = self.highest = 0.0
        self.known, self.renew = (math.inf, 0.0), 0
        self.quiet_until = -math.inf

    def see(self, reading: Reading) -> Iterable[Finding]:
        if reading.name != "loss":
            self.history.add(reading)
            return
        if self.spike is not None:
            self.waited += 1
            self.high += not reading.value < self.spike[1]
            self.highest = max(self.highest, reading.value)
            if self.waited >= AFTER or not reading.finite:
                yield from self._told(not reading.finite)
        if not reading.finite:
            return
        if len(self.first) < 5:
            self.first.append(reading.value)
        self.renew -= 1
        if self.spike is None and reading.step >= self.quiet_until:
            if reading.value > self.known[0] or self.renew < 0:
                self.known, self.renew = self._threshold(), RENEW - 1
            threshold, usual = self.known
            if reading.value > threshold:
                self.spike, self.waited, self.high = (reading, threshold, usual), 0, 0
                self.highest = reading.value
                # Losses near zero scatter by factors: one alone must be twice the swing in logarithms too.
                self.alone = usual + ALONE * (threshold - usual)
                self.alone = max(self.alone, self.swing**2 / usual) if usual > 0 else self.alone
        self.past.append(reading)

    def _threshold(self) -> tuple[float, float]:
        """Above what a loss is a spike, and what it usually is; infinite while too little is known."""
        latest = [one.value for one in self.past]
        known = latest[:-RECENT]
        if len(known) < ENOUGH:
            return math.inf, 0.0
        usual = median(known[-LATEST:])
        # From one reading to the next, so that the descent itself is not taken for noise.
        spread = 1.4826 * median([abs(after - now) for now, after in pairwise(known)]) / math.sqrt(2)
        wandering = _wandering(known)
        wanders = max(wandering, _wandering(known, APART // 2, FEW)) > BEYOND * spread
        spread = max(spread, wandering)
        lowered = next(index for index, value in enumerate(known) if value <= usual)
        self.swing = max(known[lowered:])
        gained = max(max(self.first) - usual, abs(usual))
        dip = usual - _lowest(latest[-LATEST - RECENT :], usual)
        noise = max(SPREADS * spread, BEYOND * (self.swing - usual), BEYOND * dip)
        self.far = usual + ALONE * noise if wanders else 0.0
        return usual + _climb(known[-LATEST:], spread) + max(noise, SHARE * gained), usual

    def _told(self, lost: bool) -> Iterable[Finding]:
        assert self.spike is not None
        spike, threshold, usual = self.spike
        self.spike = None
        if not lost and self.high < LASTING and spike.value < self.alone:
            return
        before = [one.value for one in self.past if one.step < spike.step]
        led = median(before[-LEADING:]) - usual > ON_ITS_WAY * (threshold - usual)
        if not lost and led and self.highest < self.far:
            return
        self.quiet_until = spike.step + QUIET
        # Half of the way to the threshold is out of line already.
        sudden = before[-1] < (usual + threshold) / 2
        cause = cause_of(self.history, spike.step, sudden, [one.value for one in self.past][len(before) :])
        yield Finding(
            self.name,
            spike.step,
            f"the loss rose to {spike.value:.3g} from about {usual:.3g}. What came before it: {cause.words}.",
            {"loss": spike.value, "median": usual, "threshold": threshold, **cause.numbers},
            "warning",
            cause.layers,
            PAPERS[cause.kind],
            self._remedies(cause, spike.step),
        )

    def _remedies(self, cause: Cause, step: int) -> tuple[Remedy, ...]:
        norm = cause.numbers.get("gradient norm", 1.0) / cause.numbers.get("gradient over its median", 1.0)
        clipped = clip(self.about, 2 * norm)
        if cause.kind == "bad batch":
            if not self.adaptive:
                return (clipped,)
            title, rate = "Adam that cuts single entries that stand out", rate_for_adam(self.about, True)
            return clipped, instead(title, "SPAM(groups)", "spam", rate)
        if cause.kind == "second moment":
            code = (
                "for group in opt.param_groups:\n"
                "    if 'betas' in group:\n"
                "        group['betas'] = (group['betas'][0], 0.95, *group['betas'][2:])"
            )
            return Remedy("a second moment that forgets sooner", code, "spam"), clipped
        if cause.kind in ("learning rate", "sharpness"):
            times = max(cause.numbers.get("sharpness over its limit", 0.0) / 0.8, 1.25)
            times = max(times, cause.numbers.get("learning rate times", 1.0))
            return lower(times), clipped
        if cause.kind == "new data":
            return seen("in a new run, keep the batches of both sides, to look at them", step), clipped
        paper = "small-scale-proxies" if cause.kind == "attention logits" else "loss-curvature"
        return clipped, Remedy("a longer warm-up", warmed(step), paper)


def _lowest(values: list[float], usual: float) -> float:
    """Of the readings from which the loss has come back to what is usual: a descent is none."""
    back = max(index for index, value in enumerate(values) if value >= usual)
    return min(values[: back + 1])


def _wandering(values: list[float], steps: int = APART, few: int = APART) -> float:
    """Standard deviation of readings, from how far one in twenty rises over the steps that are compared."""
    rises = sorted(after - now for now, after in zip(values, values[steps:], strict=False))
    if len(rises) <= few:
        return 0.0
    return max(rises[int(HIGH * len(rises))], 0.0) / DEVIATIONS / math.sqrt(2)


def _climb(latest: list[float], spread: float) -> float:
    """How far a loss that climbs beyond its noise gets from the middle of these readings until now."""
    half = len(latest) // 2
    risen = median(latest[half:]) - median(latest[:half])
    return risen / half * (half + RECENT) if risen > spread else 0.0
