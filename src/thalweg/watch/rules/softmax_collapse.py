"""Softmax collapse: examples whose logits are too large to give a gradient (arXiv 2501.04697)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import orthogonal_steps
from thalweg.watch.rule import Rule

LEVELS = ((0.05, "info"), (0.25, "warning"), (0.5, "critical"))
IN_A_ROW = 3


class SoftmaxCollapse(Rule):
    """5 % of the examples collapsed: ``info``, since a run that fits its data well gets there in the end.

    A quarter of them is a warning, half of them critical, three times in a row: of a sound run that fits its
    data a tenth or so has collapsed, and single batches are far from that on both sides.
    """

    name = "softmax collapse"
    reads = ("softmax collapse",)

    def __init__(self, about):
        super().__init__(about)
        self.said = 0
        self.last: deque[Reading] = deque(maxlen=IN_A_ROW)

    def see(self, reading: Reading) -> Iterable[Finding]:
        self.last.append(reading)
        least = min(one.value for one in self.last) if len(self.last) == IN_A_ROW else 0.0
        lasting = sum(least >= threshold for threshold, _ in LEVELS)
        level = max(lasting, int(reading.value >= LEVELS[0][0]))
        if level <= self.said:
            return
        began = self.last[0].step if level > 1 else reading.step
        self.said = level
        threshold, severity = LEVELS[level - 1]
        yield Finding(
            self.name,
            began,
            f"{reading.value:.0%} of the examples have a softmax that is exactly 1 in working precision: "
            "they give no gradient any more, whatever the test accuracy.",
            {"collapsed": reading.value, "threshold": threshold, **reading.extra},
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
