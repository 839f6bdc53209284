"""Loss or gradient is no longer a number."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import clip, warmed
from thalweg.watch.rule import Rule

LOSSES = 20
AT_FIRST, STAYS = "warning", "critical"


class Divergence(Rule):
    """The first NaN or infinity: a warning, since the loop or a GradScaler may leave this step out.

    Critical once a later step shows that it is in the weights: their norm or another gradient is not finite,
    or twenty losses in a row are not, with no finite norm between them.
    """

    name = "not finite"
    reads = ("loss", "gradient norm", "weight norm")

    def __init__(self, about):
        super().__init__(about)
        self.first: Reading | None = None
        self.losses = 0
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if reading.finite:
            self.losses = 0
            return
        if self.said:
            return
        if self.first is None:
            self.first = reading
            words = "unless this step is left out, every later one carries it on"
            yield self._finding(reading, words, AT_FIRST)
        elif reading.step > self.first.step:
            self.losses += reading.name == "loss"
            if reading.name != "loss" or self.losses >= LOSSES:
                self.said = True
                words = f"first seen at step {self.first.step}: it is in the weights, and stays"
                yield self._finding(reading, words, STAYS)

    def _finding(self, reading: Reading, words: str, severity: str) -> Finding:
        assert self.first is not None
        layers = tuple(name for name, value in reading.layers.items() if not abs(value) < float("inf"))
        where = f", first in {layers[0]}" if layers and reading is self.first else ""
        return Finding(
            self.name,
            self.first.step,
            f"the {reading.name} is {reading.value:g}{where}; {words}.",
            {reading.name: reading.value},
            severity,
            layers[:5],
            ("gradient-clipping", "loss-curvature"),
            (
                Remedy(
                    "from the last checkpoint: a lower learning rate with warm-up, and clipping",
                    f"for group in opt.param_groups:\n    group['lr'] /= 10\n{warmed(reading.step)}\n"
                    + clip(self.about, 1.0).code,
                    "loss-curvature",
                ),
            ),
        )
