"""Output logits that drift all together, which cross entropy does not see (arXiv 2309.14322)."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import decayed, penalised
from thalweg.watch.rule import Rule

LEVELS = ((2.0, "warning"), (50.0, "critical"))
FIRST = 3
IN_A_ROW = 3


class OutputLogitDrift(Rule):
    """Zero has left the interval from the mean logit to log Z, by 2 more than at first, three times in a row.

    A network that grows sure of itself moves the two ends apart, and zero stays between them. Where both are
    on one side of zero, all logits have moved together. At 50: critical.
    """

    name = "output-logit drift"
    reads = ("log Z",)

    def __init__(self, about):
        super().__init__(about)
        self.first: list[float] = []
        self.above: list[tuple[int, float]] = []
        self.said = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        mean = reading.extra.get("mean logit", 0.0)
        drift = max(-reading.value, mean, 0.0)
        if not drift < float("inf"):
            return
        if len(self.first) < FIRST:
            self.first.append(drift)
        beyond = drift - median(self.first)
        if beyond <= LEVELS[0][0]:
            self.above = []
            return
        self.above.append((reading.step, beyond))
        least = min(height for _, height in self.above[-IN_A_ROW:])
        level = sum(least > threshold for threshold, _ in LEVELS)
        if len(self.above) < IN_A_ROW or level <= self.said:
            return
        self.said = level
        threshold, severity = LEVELS[level - 1]
        where = "below" if mean < 0 else "above"
        yield Finding(
            self.name,
            self.above[0][0] if level == 1 else reading.step,
            f"log Z is {reading.value:.3g} and the mean logit {mean:.3g}: all logits drift {where} zero, "
            "which cross entropy does not see and low precision does.",
            {"log Z": reading.value, "mean logit": mean, "drift": beyond, "threshold": threshold},
            severity,
            (),
            ("small-scale-proxies",),
            (
                Remedy(
                    "the z-loss, which holds log Z near zero",
                    penalised("nn.z_loss(logits, 1e-3)"),
                    "small-scale-proxies",
                ),
                decayed("decoupled weight decay", self.about, self.adaptive, 0.1, "small-scale-proxies"),
            ),
        )
