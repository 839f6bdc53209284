"""A batch so small that its noise holds the loss up (arXiv 1812.06162)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

READINGS = 32
STEPS = 100
TIMES = 4.0
SHARE = 0.3
PROGRESS = 0.05
LEFT = 0.1
RISEN = 2.0
FIRST = 10
LOSSES = 2000


class NoiseDominated(Rule):
    r"""The noise scale is 4 batches or more, noise makes up 0.3 of the loss, and the loss no longer falls.

    Noise outweighs the signal at the end of every healthy run, so that alone says nothing. What counts is
    what it costs: around a minimum, steps of rate :math:`\eta` with gradients of batches of B keep the loss
    :math:`\frac\eta4 \mathrm{tr}\,\Sigma / B` above it, where :math:`\Sigma` is the covariance of examples
    and :math:`\eta` is counted with momentum and, under Adam, entry by entry. All three are judged over 32
    readings (ratios of means) and at least 100 steps: a loss that fell by less than 0.05 from the first half
    of them to the second. One that doubled is driven up by something else, and a run that is down to a tenth
    of its first loss has arrived. Of optimizers whose step is not a known multiple of the gradient nothing is
    said.
    """

    name = "noise-dominated batch"
    reads = ("loss", "gradient noise scale")

    def __init__(self, about):
        super().__init__(about)
        self.past: deque[Reading] = deque(maxlen=READINGS)
        self.losses: deque[Reading] = deque(maxlen=LOSSES)
        self.first: list[float] = []
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said:
            return
        if reading.name == "loss":
            if reading.finite:
                # Below zero a loss has no scale that a share could be of.
                self.said = reading.value < 0
                self.losses.append(reading)
                if len(self.first) < FIRST:
                    self.first.append(reading.value)
            return
        if "gain" not in reading.extra or not reading.extras_finite:
            return
        self.past.append(reading)
        start = self.past[0].step
        while self.losses and self.losses[0].step < start:
            self.losses.popleft()
        span = reading.step - start
        if len(self.past) < READINGS or span < STEPS or len(self.losses) < READINGS:
            return
        mean = {key: fmean(one.extra[key] for one in self.past) for key in reading.extra}
        values = [one.value for one in self.losses]
        half = len(values) // 2
        loss, early, late = fmean(values), fmean(values[:half]), fmean(values[half:])
        scale = mean["noise"] / mean["signal"] if mean["signal"] > 0 else math.inf
        share = (mean["step"] - mean["gain"]) / 4 / loss if loss > 0 else 0.0
        stuck = (1 - PROGRESS) * early < late < RISEN * early and late > LEFT * fmean(self.first)
        if not (stuck and scale > TIMES * mean["batch"] and share > SHARE):
            return
        self.said = True
        numbers = {
            "noise scale": scale,
            "batch": mean["batch"],
            "noise in the loss": share,
            "threshold": SHARE,
            "loss": late,
            "loss before": early,
        }
        yield self._finding(start, span, numbers)

    def _finding(self, start: int, span: int, numbers: dict[str, float]) -> Finding:
        # Beyond all of the loss the estimate, which holds for small steps, says no more than that.
        batch, share = numbers["batch"], min(numbers["noise in the loss"], 1.0)
        # The share is proportional to the rate and to one over the batch.
        less = max(2, math.ceil(share / 0.1))
        scale = f"{numbers['noise scale']:.0f}" if math.isfinite(numbers["noise scale"]) else "beyond measure"
        return Finding(
            self.name,
            start,
            f"the gradient's noise scale is {scale} at batches of {batch:.0f}, the loss went from "
            f"{numbers['loss before']:.3g} to {numbers['loss']:.3g} in {span} steps, and at this learning "
            f"rate noise alone keeps it up by about {share * numbers['loss']:.2g}.",
            numbers,
            "warning",
            (),
            ("surge-batch-size", "gradient-variance-ema", "sgd-noise-regimes"),
            (
                Remedy(
                    f"a step for every {less} batches",
                    f"every = {less}\n"
                    "for number, batch in enumerate(loader, 1):  # in place of the loop\n"
                    "    loss = loss_fn(model, batch)\n"
                    "    (loss / every).backward()\n"
                    "    run.log(loss=loss, batch=batch)\n"
                    "    if number % every == 0:\n"
                    "        opt.step()\n"
                    "        opt.zero_grad()",
                    "surge-batch-size",
                ),
                Remedy(
                    "a lower learning rate: what noise adds to the loss falls with it",
                    f"for group in opt.param_groups:\n    group['lr'] /= {less}",
                    "sgd-noise-regimes",
                ),
            ),
        )
