"""Normalised weights that outgrow their learning rate (arXiv 2006.08217, 2407.01800)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import decayed, instead, rate_for_adam
from thalweg.watch.rule import Rule

SHRUNK = 0.2
BEYOND = 0.4
IN_A_ROW = 3
RISE = 2.0


class ShrinkingEffectiveRate(Rule):
    """Steps turn scale-invariant weights five times less than at first; steady growth does not explain it.

    What the schedule takes from a weight's own learning rate does not count: readings are divided by it.
    Steps at right angles to a weight, of a steady rate, make its share of the first reading fall as one over
    the root of time: that share is called healthy, and 0.4 of it not. The median over the layers, three
    readings in a row. While a weight's rate warms up, its first reading is taken anew.
    """

    name = "shrinking effective learning rate"
    reads = ("effective rate",)

    def __init__(self, about):
        super().__init__(about)
        # By layer: what one unit of rate did to it at first, and when that was; the rate of the last reading.
        self.first: dict[str, tuple[int, float]] = {}
        self.rates: dict[str, float] = {}
        self.below: list[Reading] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said or not reading.finite:
            return
        usual = reading.extra.get("rate", 0.0)
        rates = {name: reading.extra.get(f"rate of {name}", usual) for name in reading.layers}
        # A rate of 0: a warm-up that starts there, or a schedule that has ended.
        feel = {
            name: value / rates[name]
            for name, value in reading.layers.items()
            if rates[name] > 0 and 0 < value < float("inf")
        }
        if not feel:
            return
        for name, value in feel.items():
            warms = self.rates.get(name, 0.0) < rates[name] <= RISE * self.rates.get(name, 0.0)
            if warms or name not in self.first:
                self.first[name] = reading.step, value
            self.rates[name] = rates[name]
        left = {name: value / self.first[name][1] for name, value in feel.items()}
        share = median(left.values())
        since = min(self.first[name][0] for name in feel)
        threshold = min(SHRUNK, BEYOND * math.sqrt(since / reading.step))
        self.below = [*self.below, reading] if share < threshold else []
        if len(self.below) < IN_A_ROW:
            return
        self.said = True
        yield Finding(
            self.name,
            self.below[0].step,
            f"weights in front of a normalisation have grown: at the same learning rate a step turns them "
            f"{1 / share:.3g} times less than at first.",
            {"left": share, "effective rate": reading.value, "learning rate": usual, "threshold": threshold},
            "warning",
            tuple(sorted(left, key=lambda name: left[name])[:5]),
            ("adamp", "normalize-and-project"),
            (
                self._projected(),
                decayed(
                    "decoupled weight decay, under which growth and decay balance",
                    self.about,
                    self.adaptive,
                    0.1,
                    "adamp",
                ),
            ),
        )

    def _projected(self) -> Remedy:
        title = "no step along the weights: they grow less, and by no momentum"
        if str(self.about.get("optimizer", "")).startswith("SGD"):
            return instead(title, "SGDP(groups, momentum=0.9, weight_decay=1e-4)", "adamp")
        rate = rate_for_adam(self.about, self.adaptive)
        return instead(title, "AdamP(groups, weight_decay=0.01)", "adamp", rate)
