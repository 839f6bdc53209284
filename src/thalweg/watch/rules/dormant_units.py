"""Units that have fallen silent, and more of them (arXiv 2302.12902)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

SHARE = 0.10
LAYER = 0.50
RISE = 0.05


class DormantUnits(Rule):
    """A tenth of the units dormant twice in a row, half of one layer, or 0.05 more within 10 readings.

    Measured against the first reading: units that never were active are the architecture's, not the run's.
    The last of the three alone is an early sign, ``info``.
    """

    name = "dormant units growing"
    reads = ("dormant units",)

    def __init__(self, about):
        super().__init__(about)
        self.first: Reading | None = None
        self.past: deque[Reading] = deque(maxlen=10)
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if not reading.finite:
            return
        self.first = self.first or reading
        first, past = self.first, list(self.past)
        self.past.append(reading)
        if self.said or not past:
            return
        grown = reading.value - first.value
        layers = {
            name: share for name, share in reading.layers.items() if share - first.layers.get(name, 0) > RISE
        }
        many = reading.value > SHARE and past[-1].value > SHARE and grown > RISE
        layer = any(share > LAYER for share in layers.values())
        rising = len(past) >= 9 and reading.value - past[0].value > RISE
        if not (many or layer or rising):
            return
        self.said = True
        worst = tuple(sorted(layers, key=lambda name: -layers[name])[:3])
        yield Finding(
            self.name,
            reading.step,
            f"{reading.value:.0%} of the hidden units are dormant, {first.value:.0%} were at step "
            f"{first.step}: they learn no more.",
            {"dormant": reading.value, "at first": first.value, "threshold": SHARE},
            "critical" if reading.value > LAYER else "warning" if many or layer else "info",
            worst,
            ("dormant-neurons", "plasticity", "continual-backprop"),
            (
                Remedy(
                    "give dormant units fresh weights, every thousand steps or so",
                    "from thalweg import probe, surgery\n"
                    "dormant = probe.dormant_neurons(model, inputs)\n"
                    "surgery.reset_dormant(model, dormant, optimizer=opt)",
                    "dormant-neurons",
                ),
            ),
        )
