"""Softmax collapse on the batch at hand (arXiv 2501.04697)."""

from __future__ import annotations

import torch

from thalweg.probe import softmax_collapse
from thalweg.watch.moment import Moment, Raw, few, sensor

EXAMPLES = 1024
# What torch's cross entropy leaves out.
IGNORED = -100
UNFIT = "targets are no classes, whole numbers of shape (...) beside logits of shape (..., classes)"


@sensor("softmax collapse", share=1.0, every=5, passes=0.2, needs=("output", "targets"))
def collapsed(at: Moment) -> list[Raw]:
    """Share of examples in which every logit but the largest has vanished from the softmax's sum.

    ``extra``: the share whose loss is zero, the share answered rightly, and how many examples there were.
    """
    assert at.output is not None and at.targets is not None
    logits, targets = few(at.output, EXAMPLES), few(at.targets, EXAMPLES)
    classes = logits.ndim and logits.is_floating_point() and targets.dtype is torch.int64
    if not classes or logits.shape[:-1] != targets.shape or logits.shape[-1] < 2:
        return at.silent(UNFIT)
    if not bool(((targets < logits.shape[-1]) & (targets >= 0) | (targets == IGNORED)).all()):
        return at.silent(UNFIT)
    at.silent(None)
    if not bool((targets != IGNORED).any()):
        return []
    found = softmax_collapse(logits, targets)
    counted = targets != IGNORED
    right = (logits.argmax(-1) == targets)[counted].float().mean()
    extra = {"zero loss": found.zero_loss, "right": right, "examples": float(found.examples)}
    return [Raw("softmax collapse", found.fraction, extra=extra)]
