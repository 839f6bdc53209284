"""Where the output logits stand: the softmax's normaliser and their mean (arXiv 2309.14322)."""

from __future__ import annotations

import torch

from thalweg.probe import output_logits
from thalweg.watch.moment import Moment, Raw, few, sensor
from thalweg.watch.sensors.softmax import IGNORED, UNFIT

EXAMPLES = 256


@sensor("log Z", share=0.5, every=5, passes=0.2, needs=("output", "targets"))
def log_z(at: Moment) -> list[Raw]:
    """Mean of log Z over a part of the batch, and of the logits; of classifiers with two classes or more."""
    assert at.output is not None and at.targets is not None
    logits, targets = few(at.output, EXAMPLES), few(at.targets, EXAMPLES)
    classes = logits.ndim > 1 and logits.is_floating_point() and targets.dtype is torch.int64
    if not classes or logits.shape[:-1] != targets.shape or logits.shape[-1] < 2:
        return at.silent(UNFIT)
    at.silent(None)
    if not bool((targets != IGNORED).any()):
        return []
    found = output_logits(logits, targets, ignore_index=IGNORED)
    return [Raw("log Z", found.log_z, extra={"mean logit": found.mean, "largest logit": found.largest})]
