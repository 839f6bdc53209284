"""Batches that differ far more than their examples do: data in some order (arXiv 1812.06162, 2203.10036)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev

from thalweg.watch.readings import Finding, Reading, Remedy
from thalweg.watch.rule import Rule

READINGS = 16
STEPS = 60
BEGIN = 50
AGREE = 0.5
ERRORS = 2.0


def apart(past: Sequence[Reading]) -> float:
    """How surely batches agree less than half as much as the examples of one: the mean over its error
    of (half within - across) / (half |within| + |across|), below zero where they agree more.

    A reading counts at most 1 this way: on sorted data gradients are hundreds of times larger where a class
    begins. Batches that agree as their examples do give -1/3, such as have nothing in common 1.

    Args:
        past: two readings of the agreement of batches at least.
    """
    pairs = [(AGREE * one.extra["within"], one.extra["across"]) for one in past]
    missed = [(half - across) / (abs(half) + abs(across) or 1.0) for half, across in pairs]
    error = stdev(missed) / math.sqrt(len(missed))
    return fmean(missed) / error if error else math.copysign(math.inf, fmean(missed))


class UnshuffledData(Rule):
    r"""Over 16 readings and 60 steps, gradients of two batches agree less than half as much as within one.

    For batches drawn from all of the data, two examples have the same expected inner product of gradients
    :math:`\|G\|^2` whether they are of one batch or of two. Of data that are sorted by class or come source
    by source, those of one batch agree and those of two do not. Half, midway between, is surely missed: by
    two standard errors, which leaves what random batches give as far away again.
    What is compared is read only where the noise within a batch is small, a fifth of the batch's size.
    """

    name = "unshuffled data"
    reads = ("agreement of batches",)

    def __init__(self, about):
        super().__init__(about)
        self.past: deque[Reading] = deque(maxlen=READINGS)
        self.said = False

    def see(self, reading: Reading) -> Iterable[Finding]:
        if self.said or reading.step <= BEGIN or not reading.extras_finite:
            return
        self.past.append(reading)
        if len(self.past) < READINGS or reading.step - self.past[0].step < STEPS:
            return
        across, within = (fmean(one.extra[key] for one in self.past) for key in ("across", "within"))
        if across >= AGREE * within or apart(self.past) < ERRORS:
            return
        self.said = True
        batch = reading.extra["batch"]
        agreement = across / within
        words = f"only {agreement:.0%} as much" if agreement > 0 else "not at all"
        yield Finding(
            self.name,
            self.past[0].step,
            f"gradients of examples of one batch of {batch:.0f} agree, and with those of other batches "
            f"{words}: batches differ far more than their examples do, as where data are sorted by class, "
            "come source by source or change in mid-run. Steps unlearn what others have learnt, and noise "
            "within a batch says nothing of what batch size is needed.",
            {"agreement": agreement, "threshold": AGREE, "across": across, "within": within, "batch": batch},
            "warning",
            (),
            ("gradient-coherence",),
            (
                Remedy(
                    "draw every batch from all of the data",
                    "loader = torch.utils.data.DataLoader(\n"
                    f"    loader.dataset, {batch:.0f}, shuffle=True, collate_fn=loader.collate_fn\n"
                    ")",
                    "gradient-coherence",
                ),
            ),
        )
