"""The dynamics of a run change for good after a steady stretch (arXiv 2308.09543)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from thalweg.watch.blocks import AFTER, Blocks, Departure
from thalweg.watch.rates_by_group import group_rates
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.remedies import kept
from thalweg.watch.rule import Rule

ALONE = 4.2
ALONE_TIMES = 1.8
TOGETHER = 11.0
EACH = 2.0
TIMES = 1.2
GROWTH = 0.4
# What one reading can count for.
MOST = 10.0
# A learning rate that jumps by a factor of two is reason enough to believe weaker signs.
JUMP = 2.0
EXPECTED = 3.5


class PhaseChange(Rule):
    """Loss, gradient norm and the growth of the weights leave the way they were going, together or one far.

    Each is cut into at most 96 blocks, and the last six are compared with the 24 before, see
    :class:`thalweg.watch.Blocks`: what three in four of them exceed, in standard deviations of the blocks
    before. Two of the three at least 2 away and together 11, or loss or gradient norm alone 4.2 and by a
    factor of 1.8. Loss and gradient norm must have changed by a factor of 1.2 to count, the weights' growth
    by 0.4 of what it was. Where a learning rate has just jumped by a factor of two, 3.5 in all are enough.
    The next change is told after another steady stretch.
    """

    name = "phase change"
    reads = ("loss", "gradient norm", "weight norm", "learning rate")

    def __init__(self, about):
        super().__init__(about)
        self.courses = {
            "loss": Blocks(least=0.03),
            "gradient norm": Blocks(least=0.03),
            "weight norm": Blocks(share=0.1),
        }
        self.latest: dict[str, tuple[int, Departure]] = {}
        self.weights: tuple[int, float] | None = None
        self.rates: list[float] = []
        # Step, rate before and behind, and of which parameter group.
        self.jump: tuple[int, float, float, int] | None = None
        self.negative = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        name = reading.name
        # A loss that has been below zero has no logarithm to follow.
        self.negative = self.negative or (name == "loss" and reading.value < 0)
        if name == "learning rate":
            old, self.rates = self.rates, group_rates(reading, reading.value)
            for group, (before, now) in enumerate(zip(old, self.rates, strict=False)):
                if before != now and max(before, now) >= JUMP * min(before, now):
                    self.jump = reading.step, before, now, group
            return
        if not reading.finite or reading.value <= 0 or (name == "loss" and self.negative):
            return
        value = math.log(reading.value)
        if name == "weight norm":
            last, self.weights = self.weights, (reading.step, value)
            if last is None or reading.step <= last[0]:
                return
            value = (value - last[1]) / (reading.step - last[0])
        course = self.courses[name]
        if not course.add(reading.step, value):
            return
        found = course.departure()
        if found is not None and _matters(name, found):
            known = self.latest.get(name)
            if known is None or found.spreads >= known[1].spreads:
                self.latest[name] = reading.step, found
        recent = reading.step - (AFTER + 2) * course.size
        self.latest = {name: one for name, one in self.latest.items() if one[0] >= recent}
        changed = {name: one for name, (_, one) in self.latest.items() if one.spreads >= EACH}
        if not changed:
            return
        together = sum(min(one.spreads, MOST) for one in changed.values())
        began = min(one.step for one in changed.values())
        jumped = self.jump is not None and self.jump[0] >= began - AFTER * course.size
        alone = any(_stands_alone(name, one) for name, one in changed.items())
        if jumped and together >= EXPECTED:
            threshold = EXPECTED
        elif alone:
            threshold = ALONE
        elif len(changed) > 1 and together >= TOGETHER:
            threshold = TOGETHER
        else:
            return
        yield self._change(began, reading.step, changed, together, threshold, jumped)
        self.latest, self.jump = {}, None
        for one in self.courses.values():
            one.forget()

    def _change(
        self,
        step: int,
        found: int,
        changed: dict[str, Departure],
        together: float,
        threshold: float,
        jumped: bool,
    ) -> Finding:
        words = []
        evidence: dict[str, float] = {}
        for name, one in sorted(changed.items(), key=lambda pair: -pair[1].spreads):
            if name == "weight norm":
                now = one.level + one.size
                words.append(f"the weights' growth went from {one.level:.2g} to {now:.2g} a step")
                evidence["weight growth before"] = one.level
                evidence["weight growth off by"] = one.size
            else:
                words.append(f"the {name} is {math.exp(one.size):.2g} times what it was going to be")
                evidence[f"{name} times"] = math.exp(one.size)
            evidence[f"{name}, spreads away"] = one.spreads
        evidence |= {"spreads away": together, "threshold": threshold}
        cause = ""
        if jumped and self.jump is not None:
            when, old, new, group = self.jump
            of = f" of parameter group {group}" if len(self.rates) > 1 else ""
            cause = f"; the learning rate{of} went from {old:.3g} to {new:.3g} at step {when}"
        return Finding(
            self.name,
            step,
            f"{', '.join(words)}, lastingly{cause}.",
            evidence,
            "info",
            (),
            ("latent-training-states",),
            (
                kept(
                    "run again and keep the weights of both sides, to see what has changed",
                    (step, found),
                    "latent-training-states",
                ),
            ),
        )


def _matters(name: str, found: Departure) -> bool:
    if name == "weight norm":
        return abs(found.size) >= GROWTH * abs(found.level)
    return abs(found.size) >= math.log(TIMES)


def _stands_alone(name: str, found: Departure) -> bool:
    return name != "weight norm" and found.spreads >= ALONE and abs(found.size) >= math.log(ALONE_TIMES)
