"""Softmax collapse: examples whose logits are too large to give a gradient (arXiv 2501.04697)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import orthogonal_steps
from thalweg.watch.rule import Rule

LEVELS = ((0.05, "info"), (0.25, "warning"), (0.5, "critical"))


class SoftmaxCollapse(Rule):
    """5 % of the examples collapsed: ``info``, since a run that fits its data well gets there in the end.

    A quarter of them is a warning, half of them critical.
    """

    name = "softmax collapse"
    reads = ("softmax collapse",)

    def __init__(self, about):
        super().__init__(about)
        self.said = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        level = sum(reading.value >= threshold for threshold, _ in LEVELS)
        if level <= self.said:
            return
        self.said = level
        threshold, severity = LEVELS[level - 1]
        yield Finding(
            self.name,
            reading.step,
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
