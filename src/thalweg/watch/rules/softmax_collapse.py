"""Softmax collapse: examples whose logits are too large to give a gradient (arXiv 2501.04697)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import orthogonal_steps
from thalweg.watch.rule import Rule
from thalweg.watch.rules.memorised import Slow

LEVELS = ((0.05, "info"), (0.25, "warning"), (0.5, "critical"))
GAP = 0.3
MOVE = 0.02
# So many examples, of one batch or of several, tell a share.
ENOUGH = 20


class SoftmaxCollapse(Rule):
    """5 % of the examples collapsed: ``info``, since a run that fits its data well gets there in the end.

    Those whose loss is zero count: an example that is answered wrongly, however surely, has a gradient. Small
    batches are put together, to 20 examples at least.

    It does harm where there is something left to learn: with the test accuracy known, 0.3 below that on the
    training data (known, or else of the batch), and neither it nor the test loss risen from its worst to its
    best by 0.02, a quarter of the examples is a warning, half of them critical.
    """

    name = "softmax collapse"
    reads = ("train accuracy", "test accuracy", "test loss", "softmax collapse")

    def __init__(self, about):
        super().__init__(about)
        self.said = 0
        self.train: float | None = None
        self.test: float | None = None
        self.accuracy, self.loss = Slow(), Slow()
        self.past: deque[tuple[float, float]] = deque()

    def see(self, reading: Reading) -> Iterable[Finding]:
        if not reading.finite:
            return
        if reading.name == "softmax collapse":
            yield from self._collapsed(reading)
        elif reading.name == "train accuracy":
            self.train = reading.value
        elif reading.name == "test accuracy":
            self.test = reading.value
            self.accuracy.add(reading.value)
        else:
            self.loss.add(reading.value)

    def _gap(self, reading: Reading) -> float:
        """How far the test accuracy is below that on the training data; 0 if that is unknown or mending."""
        train = reading.extra.get("right") if self.train is None else self.train
        if train is None or self.test is None:
            return 0.0
        best = self.accuracy.mean >= self.accuracy.highest > self.accuracy.lowest + MOVE
        loss = self.loss
        best = best or loss.mean <= loss.lowest < loss.highest - MOVE * abs(loss.highest)
        return 0.0 if best else train - self.test

    def _share(self, reading: Reading) -> float:
        """Of the latest examples, those without loss; 0 before there are enough."""
        count = reading.extra.get("examples", ENOUGH)
        self.past.append((count, count * reading.extra.get("zero loss", reading.value)))
        while sum(many for many, _ in self.past) - self.past[0][0] >= ENOUGH:
            self.past.popleft()
        have = sum(many for many, _ in self.past)
        return sum(zero for _, zero in self.past) / have if have >= ENOUGH else 0.0

    def _collapsed(self, reading: Reading) -> Iterable[Finding]:
        share = self._share(reading)
        level = sum(share >= threshold for threshold, _ in LEVELS)
        gap = self._gap(reading)
        harm = gap > GAP
        level = level if harm else min(level, 1)
        if level <= self.said:
            return
        self.said = level
        threshold, severity = LEVELS[level - 1]
        known = {"gap to the test accuracy": gap, "gap from": GAP} if harm else {}
        yield Finding(
            self.name,
            reading.step,
            f"{share:.0%} of the examples have a softmax that is exactly 1 in working precision: "
            "they give no gradient any more"
            + (
                f", while the test accuracy is {gap:.2f} below that on the training data."
                if harm
                else ". Only held-out data show whether there is more to learn."
            ),
            {**known, **reading.extra, "collapsed": share, "threshold": threshold},
            severity,
            (),
            ("softmax-collapse",),
            (
                orthogonal_steps(
                    "take the growth of the logits out of the gradient",
                    self.about,
                    self.adaptive,
                    "softmax-collapse",
                ),
                Remedy(
                    "a softmax that cannot collapse",
                    "from thalweg import nn\n"
                    "stable = nn.StableMax()\n"
                    "def loss_fn(model, batch):\n"
                    "    inputs, targets = batch\n"
                    "    return stable(model(inputs), targets)",
                    "softmax-collapse",
                ),
            ),
        )
