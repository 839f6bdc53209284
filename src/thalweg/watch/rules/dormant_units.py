"""Units that have fallen silent, and more of them (arXiv 2302.12902)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import median

from thalweg.watch.growth import BLOCKS, Losses
from thalweg.watch.readings import SEVERITIES, Finding, Reading
from thalweg.watch.remedies import renewed
from thalweg.watch.rule import Rule

SHARE = 0.10
LAYER = 0.50
RISE = 0.05
FALL = 0.25
SETTLED = 3
PASSING = 0.10
SHUT = 0.9
LEARNT = 0.7
WORSE = 1.5
BLOCK = 5


class DormantUnits(Rule):
    """A tenth of the units dormant twice in a row, half of one layer, or 0.05 more within 10 readings.

    Units that never were active are the architecture's, not the run's, and in its first steps a run silences
    some for a while, up to 0.10: there must be 0.05 more than in the first three readings, in the layer 0.25
    more than in the first. The last of the three signs alone is an early one, ``info``, and so is the first
    while the loss falls, or has fallen to 0.7 and is no more than 1.5 times what it has been: units that
    answer few examples are silent on most, and the harm of silent ones is a loss that they hold up (arXiv
    2302.12902, 2303.01486). What was ``info`` is told again once it alarms.

    A layer of which nine tenths are dormant in the first three readings and in every one since lets hardly
    anything through: that is the run's trouble where its loss neither falls nor has fallen to 0.7.
    """

    name = "dormant units growing"
    reads = ("loss", "dormant units")

    def __init__(self, about):
        super().__init__(about)
        self.early: list[Reading] = []
        self.past: deque[Reading] = deque(maxlen=10)
        self.losses = Losses(BLOCK)
        # Layers that have been shut in every reading.
        self.shut: set[str] | None = None
        # By layer, the first reading of it: step and share.
        self.firsts: dict[str, tuple[int, float]] = {}
        # The lowest that the usual loss has been.
        self.best = math.inf
        # Of SEVERITIES, how many have been told.
        self.said = 0

    def see(self, reading: Reading) -> Iterable[Finding]:
        if reading.name == "loss":
            self.losses.add(reading.step, reading.value)
            return
        if not reading.finite:
            return
        shut = {name for name, share in reading.layers.items() if share >= SHUT}
        self.shut = shut if self.shut is None else self.shut & shut
        if self.firsts and reading.layers.keys() - self.firsts.keys():
            # The share of all units was of fewer: an expert has now been given enough to be judged.
            self.early.clear()
            self.past.clear()
        for name, share in reading.layers.items():
            self.firsts.setdefault(name, (reading.step, share))
        if self._known():
            self.best = min(self.best, median(self.losses.latest))
        if len(self.early) < SETTLED:
            self.early.append(reading)
        first, past = self.early[0], list(self.past)
        self.past.append(reading)
        if self.said > 1 or not past:
            return
        usual = min(max(one.value for one in self.early), first.value + PASSING)
        rises = {name: share - self.firsts[name][1] for name, share in reading.layers.items()}
        layers = {name: reading.layers[name] for name, rise in rises.items() if rise > RISE}
        many = self._many(reading, usual) and past[-1].value > SHARE
        layer = any(share > LAYER and rises[name] > FALL for name, share in layers.items())
        rising = len(past) >= 9 and reading.value - past[0].value > RISE
        never = self.shut if len(self.early) == SETTLED and self._stuck() else set()
        if not (many or layer or rising or never):
            return
        alarms = layer or (many and not self._learns())
        severity = (
            "critical" if never or (alarms and reading.value > LAYER) else "warning" if alarms else "info"
        )
        level = SEVERITIES.index(severity) + 1
        if level <= self.said:
            return
        self.said = level
        threshold = SHARE if many else LAYER if layer else SHUT if never else past[0].value + RISE
        worst = tuple(sorted(never or layers, key=lambda name: -reading.layers[name])[:3])
        # Numbers are those that the threshold is about: of all units, or of a layer's.
        start, before, share, units = first.step, first.value, reading.value, "hidden units"
        if not many and (layer or never):
            (start, before), share = self.firsts[worst[0]], reading.layers[worst[0]]
            units = f"units of {worst[0]}"
        began = past[-1] if many and not layer and self._many(past[-1], usual) else reading
        yield Finding(
            self.name,
            first.step if never else began.step,
            f"{share:.0%} of the {units} are dormant, {before:.0%} were at step {start}: "
            + (
                "a layer lets hardly anything through, and the loss stays."
                if never
                else "they give next to nothing to the next layer."
            ),
            {"dormant": share, "at first": before, "threshold": threshold, "of all units": reading.value},
            severity,
            worst,
            ("dormant-neurons", "plasticity", "continual-backprop"),
            (renewed(),),
        )

    def _many(self, reading: Reading, usual: float) -> bool:
        return reading.value > SHARE and reading.value - usual > RISE

    def _known(self) -> bool:
        return len(self.losses.latest) >= BLOCKS * BLOCK

    def _learns(self) -> bool:
        """Whether the loss is known, and falls or is about as low as it has been."""
        if not self._known() or self.losses.fall:
            return self._known()
        now = median(self.losses.latest)
        return not self.losses.negative and now <= min(LEARNT * median(self.losses.first), WORSE * self.best)

    def _stuck(self) -> bool:
        """Whether the loss is known, and neither falls nor has fallen."""
        past, first = self.losses.latest, self.losses.first
        if not self._known() or self.losses.fall:
            return False
        return self.losses.negative or median(past) > LEARNT * median(first)
