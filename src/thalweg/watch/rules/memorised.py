"""The training set is learnt by heart and the test set is not; is generalisation under way? (grokking)"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import decayed, instead, orthogonal_steps, rate_for_adam
from thalweg.watch.rule import Rule

LEARNT = 0.99
GAP = 0.30
IN_A_ROW = 3
WINDOW = 5
MOVE = 0.02


class Memorised(Rule):
    """Train accuracy at least 0.99 and test accuracy 0.3 below it in three readings in a row.

    Then it watches the slow signs: a test accuracy that has risen by 0.02, or a test loss that has fallen
    by 2 %, since its worst five-reading mean says that generalisation is under way: a finding of its own.
    """

    name = "memorised, not generalising"
    reads = ("train accuracy", "test accuracy", "test loss")
    further = ("generalisation under way",)

    def __init__(self, about):
        super().__init__(about)
        self.train: Reading | None = None
        self.began: list[Reading] = []
        self.said = self.moving = False
        self.accuracy, self.loss = Slow(), Slow()

    def see(self, reading: Reading) -> Iterable[Finding]:
        if not reading.finite:
            return
        if reading.name == "train accuracy":
            self.train = reading
            return
        if self.train is None or self.train.value < LEARNT:
            self.began, self.accuracy, self.loss = [], Slow(), Slow()
            return
        if reading.name == "test loss":
            self.loss.add(reading.value)
        else:
            self.accuracy.add(reading.value)
            self.began = [*self.began, reading] if self.train.value - reading.value > GAP else []
            if len(self.began) >= IN_A_ROW and not self.said:
                self.said = True
                yield self._memorised(reading)
        if self.said and not self.moving and self._signs():
            self.moving = True
            yield self._under_way(reading)

    def _signs(self) -> dict[str, float]:
        """How far the slow signs have moved from their worst, if far enough."""
        signs = {}
        risen, fallen = self.accuracy.mean - self.accuracy.lowest, self.loss.highest - self.loss.mean
        if risen > MOVE:
            signs["test accuracy risen by"] = risen
        if fallen > MOVE * abs(self.loss.highest):
            signs["test loss fallen by"] = fallen / self.loss.highest
        return signs

    def _memorised(self, reading: Reading) -> Finding:
        assert self.train is not None
        train, test = self.train.value, reading.value
        return Finding(
            self.name,
            self.began[0].step,
            f"train accuracy {train:.3f}, test accuracy {test:.3f}: the training set is learnt by heart.",
            {"train accuracy": train, "test accuracy": test, "gap": train - test, "threshold": GAP},
            "warning",
            (),
            ("softmax-collapse", "grokfast", "grokking-progress"),
            (
                orthogonal_steps(
                    "step orthogonally to the weights, so that growing logits cannot stand in for learning",
                    self.about,
                    self.adaptive,
                    "softmax-collapse",
                ),
                decayed("decoupled weight decay", self.about, self.adaptive, 1.0, "grokfast"),
            ),
        )

    def _under_way(self, reading: Reading) -> Finding:
        signs = self._signs()
        words = ", ".join(f"{name} {value:.3g}" for name, value in signs.items())
        return Finding(
            self.further[0],
            reading.step,
            f"the slow signs move ({words}): keep this run going.",
            {**signs, "threshold": MOVE},
            "info",
            (),
            ("grokking-progress", "grokfast"),
            (self._amplified(),),
        )

    def _amplified(self) -> Remedy:
        title = "amplify the slow part of the gradient"
        if str(self.about.get("optimizer", "")).startswith("SGD"):
            return instead(title, "Descent(groups, optim.slow_component(), optim.momentum(0.9))", "grokfast")
        rate = rate_for_adam(self.about, self.adaptive)
        return instead(title, "Grokfast(groups, weight_decay=0.01)", "grokfast", rate)


class Slow:
    """Mean of the last five values, and the lowest and highest that this mean has been; nan before five."""

    def __init__(self) -> None:
        self.last: deque[float] = deque(maxlen=WINDOW)
        self.mean = self.lowest = self.highest = math.nan

    def add(self, value: float) -> None:
        self.last.append(value)
        if len(self.last) == WINDOW:
            self.mean = sum(self.last) / WINDOW
            self.lowest = self.mean if math.isnan(self.lowest) else min(self.lowest, self.mean)
            self.highest = self.mean if math.isnan(self.highest) else max(self.highest, self.mean)
