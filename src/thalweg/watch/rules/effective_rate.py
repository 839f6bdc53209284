"""Normalised weights that outgrow their learning rate (arXiv 2006.08217, 2407.01800)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import decayed, instead
from thalweg.watch.rule import Rule

SHRUNK = 0.2
BEYOND = 0.4
IN_A_ROW = 3
RISE = 2.0


class ShrinkingEffectiveRate(Rule):
    """Steps turn scale-invariant weights five times less than at first; steady growth does not explain it.

    What the schedule takes from the learning rate does not count: readings are divided by it. Steps at right
    angles to a weight, of a steady rate, make its share of the first reading fall as one over the root of
    time: that share is called healthy, and 0.4 of it not. The median over the layers, three readings in a
    row. While the rate warms up, first readings are taken anew.
    """

    name = "shrinking effective learning rate"
    reads = ("effective rate",)

    def __init__(self, about):
        super().__init__(about)
        self.first: dict[str, float] = {}
        self.since, self.rate = 0, 0.0
        self.below: list[Reading] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        rate = reading.extra.get("rate", 0.0)
        # A warm-up that starts at zero, or a schedule that has ended.
        if self.said or not reading.finite or not rate > 0:
            return
        feel = {name: value / rate for name, value in reading.layers.items() if 0 < value < float("inf")}
        if not feel:
            return
        if not self.since or self.rate < rate <= RISE * self.rate:
            self.first, self.since = {}, reading.step
        self.rate = rate
        for name, value in feel.items():
            self.first.setdefault(name, value)
        left = {name: value / self.first[name] for name, value in feel.items()}
        share = median(left.values())
        threshold = min(SHRUNK, BEYOND * math.sqrt(self.since / reading.step))
        self.below = [*self.below, reading] if share < threshold else []
        if len(self.below) < IN_A_ROW:
            return
        self.said = True
        yield Finding(
            self.name,
            self.below[0].step,
            f"weights in front of a normalisation have grown: at the same learning rate a step turns them "
            f"{1 / share:.3g} times less than at first.",
            {"left": share, "effective rate": reading.value, "learning rate": rate, "threshold": threshold},
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
        return instead(title, "AdamP(groups, weight_decay=0.01)", "adamp", None if self.adaptive else 1e-3)
