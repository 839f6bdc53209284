"""Signs that a run is about to diverge, before its loss shows it (arXiv 2110.04369, 2309.14322)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import median

from thalweg.watch.growth import Growth, Losses, Series
from thalweg.watch.rates_by_group import group_rates, sharpened
from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import clip, lower, warmed
from thalweg.watch.rule import Rule

# The least factor from block to block, the factor over all four, and how many times the noise that must be.
GROWING = {
    "gradient norm": (3, 1.3, 8.0),
    "loss": (5, 1.05, 1.5),
    "weight norm": (1, 1.2, 2.0),
    "largest logit": (2, 1.3, 8.0),
}
NOISE = 5.0
RECORD = 1.5
STEADY = 0.8
LEARNS = 0.7
SUDDEN = 0.7
LIMIT = 2.0
JUMP, JUMP_STEPS = 1.5, 5
FRESH = 200
RISING, RISING_NOISE = 2.0, 3.0
DOUBLES, CLIMBS, AHEAD = 2.0, 1.3, 2
QUIET = 300


class DivergenceAhead(Rule):
    """One of these, and a loss that does not fall:

    - a learning rate that jumps to where the last sharpness is more than twice the optimizer's limit;
    - sharpness above twice the limit, and a gradient that grows steadily and beyond noise, to twice its size;
    - a rate that climbs, and sharpness over its limit doubling from reading to reading, above 1 in two more;
    - exponential growth, beyond noise and what has been before, of the gradient's norm (8-fold over 12
      readings), the weights' (2-fold over 4), the largest logit (8-fold over 8), the loss (by half over 20);
      no more than 0.7 of it from one quarter of these to the next, for a leap is another finding.

    The jump is told at once, before the step is made. Of a loss that has been below zero only a fall counts.
    """

    name = "divergence ahead"
    reads = ("loss", "gradient norm", "weight norm", "log Z", "learning rate", "sharpness")

    def __init__(self, about):
        super().__init__(about)
        self.series = {name: Series(block) for name, (block, _, _) in GROWING.items() if name != "loss"}
        self.losses = self.series["loss"] = Losses(GROWING["loss"][0])
        self.rates: deque[Reading] = deque(maxlen=64)
        self.sharp: deque[Reading] = deque(maxlen=3)
        self.quiet_until = -math.inf

    def restart(self, about):
        super().restart(about)
        self.rates.clear()
        self.sharp.clear()

    def see(self, reading: Reading) -> Iterable[Finding]:
        found = None
        if reading.name == "learning rate":
            self.rates.append(reading)
            found = self._jumped(reading)
        elif reading.name == "sharpness":
            if "ratio" in reading.extra:
                self.sharp.append(reading)
                found = self._too_sharp(reading) or self._heading(reading)
        else:
            name = "largest logit" if reading.name == "log Z" else reading.name
            value = reading.extra.get("largest logit", math.nan) if reading.name == "log Z" else reading.value
            # What was ahead has come: that is another finding.
            if not math.isfinite(value):
                return
            self.series[name].add(reading.step, value if name == "loss" else abs(value))
            found = self._grows(name, reading)
            if found is None and name == "gradient norm":
                found = self._too_sharp(reading)
        if found is not None and reading.step >= self.quiet_until:
            self.quiet_until = reading.step + QUIET
            yield found

    def _jumped(self, reading: Reading) -> Finding | None:
        sharp = self.sharp[-1] if self.sharp else None
        if sharp is None or reading.step - sharp.step > FRESH or self.begins(reading.step):
            return None
        held = [one for one in self.rates if one.step <= reading.step - JUMP_STEPS][-1:]
        held += [one for one in self.rates if one.step > reading.step - JUMP_STEPS]
        rates = group_rates(reading, reading.value)
        before = [group_rates(one, one.value) for one in held]
        if not any(0 < JUMP * min(past) <= now for now, *past in zip(rates, *before, strict=False)):
            return None
        ratio = sharp.extra["ratio"] * sharpened(sharp, rates)
        if not ratio > LIMIT:
            return None
        return self._finding(
            reading,
            reading.step,
            f"the learning rate has jumped to {max(rates):.3g}, where sharpness, {sharp.value:.3g} at "
            f"step {sharp.step}, is {ratio:.3g} times the stability limit",
            {"learning rate": max(rates), "sharpness over its limit": ratio, "threshold": LIMIT},
            ratio,
        )

    def _too_sharp(self, reading: Reading) -> Finding | None:
        sharp = self.sharp[-1] if self.sharp else None
        if sharp is None or sharp.extra["ratio"] <= LIMIT or reading.step - sharp.step > FRESH // 5:
            return None
        grown = self.series["gradient norm"].growth()
        if grown is None or self.begins(sharp.step) or self.losses.fall:
            return None
        risen = grown.times >= RISING and math.log(grown.times) > RISING_NOISE * grown.noise
        if not (risen and grown.least > 1 and RECORD <= grown.record < math.inf):
            return None
        ratio = sharp.extra["ratio"]
        return self._finding(
            reading,
            sharp.step,
            f"sharpness is {ratio:.3g} times the stability limit, and the gradient's norm has grown "
            f"{grown.times:.3g} times since step {grown.rose}",
            {"sharpness over its limit": ratio, "threshold": LIMIT, "gradient times": grown.times},
            ratio,
        )

    def _heading(self, reading: Reading) -> Finding | None:
        """Sharpness over its limit doubles from reading to reading, without slowing down, and nears 1."""
        if len(self.sharp) < 3 or self.begins(self.sharp[0].step):
            return None
        first, second, third = (one.extra["ratio"] for one in self.sharp)
        if not (second >= DOUBLES * first > 0 and third >= DOUBLES * second):
            return None
        # At a constant rate sharpness grows by itself, and stops at the limit by itself (arXiv 2207.14484).
        pairs = pairwise(self.sharp)
        if any(sharpened(old, group_rates(new, new.extra["lr"])) < CLIMBS for old, new in pairs):
            return None
        factor = third / second
        if factor < STEADY * second / first or third * factor**AHEAD <= 1:
            return None
        steps = reading.step - self.sharp[1].step
        return self._finding(
            reading,
            self.sharp[0].step,
            f"sharpness is {third:.2g} times the stability limit, {factor:.2g} times what it was {steps} "
            f"steps ago, and has been growing like that: within {AHEAD * steps} steps it is above the limit",
            {"sharpness over its limit": third, "times": factor, "threshold": DOUBLES},
            third * factor**AHEAD,
        )

    def _grows(self, name: str, reading: Reading) -> Finding | None:
        _, least, times = GROWING[name]
        # Most readings are settled without a median.
        if self.series[name].ratio < math.sqrt(times):
            return None
        grown = self.series[name].growth()
        if grown is None or not self._exponential(grown, least, times):
            return None
        loss = None if grown.record == math.inf else self.losses.growth()
        # Weights may feed themselves while the loss still falls a little; at first, with no record behind
        # them, they grow to what the targets ask for.
        learns = self.losses.fall if loss is None else loss.times < LEARNS
        if name == "weight norm" and (learns or self._warming(grown.began)):
            return None
        if name in ("gradient norm", "largest logit") and self.losses.fall:
            return None
        steps = reading.step - grown.rose
        return self._finding(
            reading,
            grown.rose,
            f"the {name} has grown {grown.times:.3g} times in {steps} steps, exponentially"
            + self._meanwhile(name),
            {name: self.series[name].past[-1][1], "times": grown.times, "threshold": times},
            2.0,
        )

    def _meanwhile(self, name: str) -> str:
        if name == "loss" or not self.losses.latest:
            return ""
        return ", and the loss falls by little" if self.losses.fall else ", and the loss does not fall"

    def _exponential(self, grown: Growth, least: float, times: float) -> bool:
        far = grown.times >= times and math.log(grown.times) > NOISE * grown.noise
        # Growth by equal amounts, as of weights that begin at zero, slows down in these terms.
        steady = grown.steady >= max(STEADY, math.sqrt(grown.linear))
        # What comes all at once, by one long step or new targets, is another finding.
        steady = far and steady and grown.sudden <= SUDDEN
        return steady and grown.least >= least and grown.record >= RECORD

    def _warming(self, since: int) -> bool:
        """Whether a learning rate has risen since a step: longer steps make weights grow faster."""
        rates = [group_rates(one, one.value) for one in self.rates if one.step >= since]
        groups = zip(*rates, strict=False)
        return any(after > before for column in groups for before, after in pairwise(column))

    def _finding(
        self, reading: Reading, began: int, words: str, numbers: Mapping[str, float], times: float
    ) -> Finding:
        worst = sorted(reading.layers, key=lambda name: -reading.layers[name])[:3]
        norms = [value for _, value in self.series["gradient norm"].past] or [1.0]
        return Finding(
            self.name,
            began,
            f"{words}: this run is about to diverge.",
            numbers,
            "critical",
            tuple(worst),
            ("loss-curvature", "small-scale-proxies", "sgd-dynamical-stability"),
            (
                lower(max(1.25 * times, 2), "a lower learning rate, now"),
                Remedy(
                    "go back to the last checkpoint, clip the gradient, and warm up",
                    f"{clip(self.about, 2 * median(norms)).code}\n{warmed(reading.step)}",
                    "gradient-clipping",
                ),
            ),
        )
