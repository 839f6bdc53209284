"""Sharpness at or above what the optimizer can follow (arXiv 2110.04369)."""

from __future__ import annotations

from collections.abc import Iterable

from thalweg.watch.growth import Losses
from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.remedies import lower, warmed
from thalweg.watch.rule import GRACE, Rule

IN_A_ROW = 3
NEAR = 0.9
NEAR_IN_A_ROW = 5
FAR = 2.0
FAR_AT_FIRST = 6.0
BLOCK = 5


class EdgeOfStability(Rule):
    """Sharpness over the optimizer's own limit: once above 2, three in a row above 1, or five above 0.9.

    The limit is 2/lr for gradient descent, 2(1+b)/lr with momentum b, and 2(1+b1)/((1-b1) lr) for Adam,
    whose sharpness is that of the preconditioned Hessian; lr is the rate that clipping leaves. Hovering near
    1 at a constant learning rate is normal, hence ``info``; far above it, or a learning rate that has just
    risen, is what breaks runs. A fresh network comes back by itself from up to six times the limit, 12/lr
    (arXiv 2003.02218): in the first 20 steps, and until it has once been below 2 as long as the loss falls,
    only what is above that is far.
    Adam's first 20 steps are not judged: where no gradient has come yet its preconditioner is 1/eps, which
    says nothing about the steps to come (the same grace as in SPAM, arXiv 2501.06842). Where gradients are
    rare that lasts longer: until it has once been below 2, only five in a row above 2 that do not fall count,
    and later two in a row, for the gradient of a rare token is news to the preconditioner each time.
    """

    name = "edge of stability"
    reads = ("loss", "sharpness")

    def __init__(self, about):
        super().__init__(about)
        self.near: list[Reading] = []
        self.said = 0
        self.settled = False
        self.losses = Losses(BLOCK)

    def restart(self, about):
        super().restart(about)
        self.near, self.said, self.settled = [], 0, False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if reading.name == "loss":
            self.losses.add(reading.step, reading.value)
            return
        ratio = reading.extra.get("ratio", 0.0)
        early = self.begins(reading.step)
        self.settled = self.settled or (not early and ratio <= FAR)
        if not ratio >= NEAR or early:
            self.near = []
            return
        self.near.append(reading)
        above = [one.extra["ratio"] > 1 for one in self.near[-IN_A_ROW:]]
        reached = (len(above) == IN_A_ROW and all(above)) or len(self.near) >= NEAR_IN_A_ROW
        level = 2 if self._far() else 1 if reached else 0
        if level <= self.said:
            return
        self.said = level
        yield self._finding(reading, ratio, level)

    def _far(self) -> bool:
        ratios = [one.extra["ratio"] for one in self.near[-NEAR_IN_A_ROW:]]
        if not self.adaptive:
            return ratios[-1] > self._least_far()
        if self.settled:
            return len(ratios) > 1 and min(ratios[-2:]) > FAR
        return len(ratios) == NEAR_IN_A_ROW and min(ratios) > FAR and ratios[-1] >= ratios[0]

    def _least_far(self) -> float:
        fresh = self.near[-1].step - int(self.about.get("since", 0)) <= GRACE
        fresh = fresh or (not self.settled and self.losses.fall)
        return FAR_AT_FIRST if fresh and not self.adaptive else FAR

    def _finding(self, reading: Reading, ratio: float, level: int) -> Finding:
        lr = reading.extra.get("lr", self.lr)
        limit, left = reading.extra["limit"], reading.extra.get("left by clipping", 1.0)
        clipped = f", whose gradients are clipped to {left:.2g} of their length" if left < 1 else ""
        return Finding(
            self.name,
            self.near[0].step if level == 1 else reading.step,
            f"sharpness {reading.value:.3g} is {ratio:.2f} times the stability limit {limit:.3g} of "
            f"{self.about.get('optimizer', 'the optimizer')}{clipped}: "
            + ("steps along the top eigenvector grow." if level == 2 else "training has reached the edge."),
            {
                "sharpness": reading.value,
                "limit": limit,
                "ratio": ratio,
                "threshold": self._least_far() if level == 2 else NEAR,
            },
            "warning" if level == 2 else "info",
            tuple(sorted(reading.layers, key=lambda name: -reading.layers[name]))[:3],
            ("loss-curvature", "sam-edge-of-stability", "sgd-dynamical-stability"),
            (
                Remedy(
                    "warm up, so that the run flattens its path before the peak learning rate",
                    warmed(reading.step),
                    "loss-curvature",
                ),
                lower(
                    ratio / 0.8, f"a learning rate below the limit at this sharpness: {0.8 * lr / ratio:.3g}"
                ),
            ),
        )
