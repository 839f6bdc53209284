"""A batch far larger than the noise in the gradient asks for (arXiv 1812.06162)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from statistics import fmean, stdev

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule
from thalweg.watch.rules.unshuffled_data import ERRORS, apart

READINGS = 16
STEPS = 60
BEGIN = 50
TIMES = 0.1
SURE = 3.0


class BatchTooLarge(Rule):
    """Over 16 readings and 60 steps the noise scale is surely below a tenth of the batch.

    Surely: with the signal at three standard errors below its mean. The first 50 steps are not judged: the
    scale is small in all runs then. It grows as the loss falls, so this is said of now, as ``info``. Not
    where batches may agree with each other less than half as much as the examples of one do: what is within a
    batch says nothing of the noise of training then.
    """

    name = "batch larger than it needs to be"
    reads = ("agreement of batches", "gradient noise scale")

    def __init__(self, about):
        super().__init__(about)
        self.past: deque[Reading] = deque(maxlen=READINGS)
        self.apart: deque[Reading] = deque(maxlen=READINGS)
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said or reading.step <= BEGIN or not reading.extras_finite:
            return
        if reading.name == "agreement of batches":
            self.apart.append(reading)
            # From then on it is said of these data what is wrong with them, and nothing of their batches.
            self.said = len(self.apart) == READINGS and apart(self.apart) > ERRORS
            return
        self.past.append(reading)
        span = reading.step - self.past[0].step
        if len(self.past) < READINGS or span < STEPS:
            return
        signals = [one.extra["signal"] for one in self.past]
        noise, batch = (fmean(one.extra[key] for one in self.past) for key in ("noise", "batch"))
        least = fmean(signals) - SURE * stdev(signals) / math.sqrt(READINGS)
        if least <= 0 or noise / least > TIMES * batch:
            return
        if self.apart and (len(self.apart) < READINGS // 2 or apart(self.apart) > -ERRORS):
            return
        self.said = True
        scale = max(noise / fmean(signals), 1.0)
        size = max(round(scale), 1)
        yield Finding(
            self.name,
            self.past[0].step,
            f"the gradient's noise scale is about {scale:.3g} and the batch {batch:.0f}: a batch of {size} "
            f"takes twice as many steps and {2 * size / batch:.1%} of the examples.",
            {"noise scale": scale, "at most": noise / least, "batch": batch, "threshold": TIMES * batch},
            "info",
            (),
            ("surge-batch-size", "gradient-variance-ema"),
            (
                Remedy(
                    "a batch of four times the noise scale, for as long as the scale stays there",
                    "loader = torch.utils.data.DataLoader(\n"
                    f"    loader.dataset, {4 * size}, shuffle=True, collate_fn=loader.collate_fn\n"
                    ")\n"
                    "for group in opt.param_groups:\n    group['lr'] *= 0.8",
                    "surge-batch-size",
                ),
            ),
        )
