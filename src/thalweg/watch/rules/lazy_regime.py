"""A network that fits without learning features (arXiv 1812.07956, 2310.06110)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from statistics import median

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

ALIGNED = 0.95
MOVED = 0.05
FALLEN = 0.3
IN_A_ROW = 3
LOSSES = 20


class LazyRegime(Rule):
    """The training loss is below 0.3 of what it was, and the features are still those of the start.

    Three readings in a row: alignment of the feature kernel with its first one at least 0.95, and weights
    moved by at most 0.05 of their norm. The losses compared are medians of the last 20, now and when the
    features were first seen.
    """

    name = "lazy regime"
    reads = ("loss", "feature alignment")

    def __init__(self, about):
        super().__init__(about)
        self.before = 0.0
        self.last: deque[float] = deque(maxlen=LOSSES)
        self.still: list[Reading] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said or not reading.finite:
            return
        if reading.name == "loss":
            self.last.append(reading.value)
            # Below zero a loss has no scale that a share could be of.
            self.said = reading.value < 0
            return
        if reading.step == reading.extra["since"]:
            self.before = median(self.last) if self.last else 0.0
            return
        if self.before <= 0 or len(self.last) < LOSSES:
            return
        fallen = median(self.last) / self.before
        quiet = reading.value >= ALIGNED and reading.extra["weight change"] <= MOVED
        if not quiet or fallen > FALLEN:
            self.still = []
            return
        self.still.append(reading)
        if len(self.still) < IN_A_ROW:
            return
        self.said = True
        change = reading.extra["weight change"]
        yield Finding(
            self.name,
            self.still[0].step,
            f"the training loss has fallen to {fallen:.2g} of what it was, while the features that "
            f"enter the last layer are those of step {reading.extra['since']:.0f} (kernel alignment "
            f"{reading.value:.4f}, weights moved by {change:.2g} of their norm): the network fits as its "
            "linearisation would.",
            {
                "feature alignment": reading.value,
                "threshold": ALIGNED,
                "weight change": change,
                "most weight change": MOVED,
                "loss over what it was": fallen,
                "most loss over what it was": FALLEN,
            },
            "info",
            tuple(reading.layers),
            ("lazy-to-rich-grokking", "rich-lazy-connectivity"),
            self._remedies(),
        )

    def _remedies(self) -> tuple[Remedy, ...]:
        return (
            Remedy(
                "begin again with a smaller output: the smaller its scale, the further features must move",
                "last = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]\n"
                "with torch.no_grad():\n"
                "    for p in last.parameters():\n"
                "        p.mul_(0.1)",
                "lazy-to-rich-grokking",
            ),
            Remedy(
                "a larger learning rate, as far as the run stays stable",
                "for group in opt.param_groups:\n    group['lr'] *= 3",
                "lazy-to-rich-grokking",
            ),
        )
