"""Loss or gradient is no longer a number."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import clip, warmed
from thalweg.watch.rule import Rule


class Divergence(Rule):
    """The first NaN or infinity: everything behind it is lost."""

    name = "not finite"
    reads = ("loss", "gradient norm")

    def __init__(self, about):
        super().__init__(about)
        self.seen = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.seen or reading.finite:
            return
        self.seen = True
        layers = tuple(name for name, value in reading.layers.items() if not abs(value) < float("inf"))
        where = f", first in {layers[0]}" if layers else ""
        yield Finding(
            self.name,
            reading.step,
            f"the {reading.name} is {reading.value:g}{where}; every later step carries it on.",
            {reading.name: reading.value},
            "critical",
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
