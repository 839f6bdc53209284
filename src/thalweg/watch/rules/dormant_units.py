"""Units that have fallen silent, and more of them (arXiv 2302.12902)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading
from thalweg.watch.remedies import renewed
from thalweg.watch.rule import Rule

SHARE = 0.10
LAYER = 0.50
RISE = 0.05
FALL = 0.25
SETTLED = 3
PASSING = 0.10


class DormantUnits(Rule):
    """A tenth of the units dormant twice in a row, half of one layer, or 0.05 more within 10 readings.

    Units that never were active are the architecture's, not the run's, and in its first steps a run silences
    some for a while, up to 0.10: there must be 0.05 more than in the first three readings, in the layer 0.25
    more than in the first. The last of the three signs alone is an early one, ``info``.
    """

    name = "dormant units growing"
    reads = ("dormant units",)

    def __init__(self, about):
        super().__init__(about)
        self.early: list[Reading] = []
        self.past: deque[Reading] = deque(maxlen=10)
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if not reading.finite:
            return
        if len(self.early) < SETTLED:
            self.early.append(reading)
        first, past = self.early[0], list(self.past)
        self.past.append(reading)
        if self.said or not past:
            return
        usual = min(max(one.value for one in self.early), first.value + PASSING)
        rises = {name: share - first.layers.get(name, 0.0) for name, share in reading.layers.items()}
        layers = {name: reading.layers[name] for name, rise in rises.items() if rise > RISE}
        many = reading.value > SHARE and past[-1].value > SHARE and reading.value - usual > RISE
        layer = any(share > LAYER and rises[name] > FALL for name, share in layers.items())
        rising = len(past) >= 9 and reading.value - past[0].value > RISE
        if not (many or layer or rising):
            return
        self.said = True
        threshold = SHARE if many else LAYER if layer else past[0].value + RISE
        worst = tuple(sorted(layers, key=lambda name: -layers[name])[:3])
        yield Finding(
            self.name,
            reading.step,
            f"{reading.value:.0%} of the hidden units are dormant, {first.value:.0%} were at step "
            f"{first.step}: they learn no more.",
            {"dormant": reading.value, "at first": first.value, "threshold": threshold},
            "critical" if reading.value > LAYER else "warning" if many or layer else "info",
            worst,
            ("dormant-neurons", "plasticity", "continual-backprop"),
            (renewed(),),
        )
