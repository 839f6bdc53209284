"""The gradient grows by orders of magnitude: back through layers, back through time, or step by step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from thalweg.watch.growth import Losses, Series
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.remedies import clip
from thalweg.watch.rule import Rule
from thalweg.watch.rules.vanishing_gradient import layers_of, normalise, orthogonal
from thalweg.watch.sensors.backward import FEWEST

RATIO = 30.0
IN_A_ROW = 2
BLOCK = 4
TIMES = 10.0
LEAST = 1.5
RECORD = 3.0
NOISE = 5.0


class ExplodingGradient(Rule):
    """The usual error in the first third of the layers is 30 times the largest in the last, twice running.

    Or the gradient's norm grows 10-fold over 16 readings, every four by half at least, to three times what it
    has been before, single readings apart, while the loss does not fall: that of a network that leaves a
    plateau grows as well.
    """

    name = "exploding gradient"
    reads = ("loss", "gradient norm", "backward signal")

    def __init__(self, about):
        super().__init__(about)
        self.high: list[Reading] = []
        self.norms, self.losses = Series(BLOCK), Losses(BLOCK)
        self.said_depth = self.said_steps = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if reading.name == "loss":
            self.losses.add(reading.step, reading.value)
        elif reading.name == "backward signal":
            yield from self._over_depth(reading)
        else:
            self.norms.add(reading.step, reading.value)
            yield from self._over_steps(reading)

    def _over_depth(self, reading: Reading) -> Iterable[Finding]:
        norms = list(reading.layers.values())
        if self.said_depth or len(norms) < FEWEST:
            return
        part = max(1, len(norms) // 3)
        early, late = median(norms[:part]), max(norms[-part:])
        if not early > RATIO * late:
            self.high = []
            return
        self.high.append(reading)
        if len(self.high) < IN_A_ROW:
            return
        self.said_depth = True
        timed = sum(name.endswith("]") for name in reading.layers) > len(norms) / 2
        yield Finding(
            self.name,
            self.high[0].step,
            f"over {len(norms)} {'steps of the sequence' if timed else 'layers'} the error grows "
            f"{early / late:.3g} times on its way back: the first ones are moved at random.",
            {"first third": early, "last third": late, "ratio": early / late, "threshold": RATIO},
            "warning",
            layers_of(sorted(list(reading.layers)[:part], key=lambda name: -reading.layers[name])),
            ("gradient-clipping", "chaotic-gradients", "layer-norm"),
            (clip(self.about, 1.0), orthogonal(), *(() if timed else (normalise(),))),
        )

    def _over_steps(self, reading: Reading) -> Iterable[Finding]:
        # Most readings are settled without a median.
        if self.said_steps or self.norms.ratio < math.sqrt(TIMES):
            return
        grown = self.norms.growth()
        if grown is None or self.losses.fall:
            return
        steady = grown.times >= TIMES and math.log(grown.times) > NOISE * grown.noise
        if not (steady and grown.least >= LEAST and grown.record >= RECORD):
            return
        self.said_steps = True
        usual = min(value for _, value in self.norms.past)
        yield Finding(
            self.name,
            grown.rose,
            f"the gradient's norm has grown {grown.times:.3g} times since step {grown.rose}, without a "
            "pause and without the loss falling.",
            {"gradient norm": reading.value, "times": grown.times, "threshold": TIMES},
            "warning",
            tuple(sorted(reading.layers, key=lambda name: -reading.layers[name]))[:3],
            ("gradient-clipping", "loss-curvature"),
            (clip(self.about, 2 * usual), normalise()),
        )
