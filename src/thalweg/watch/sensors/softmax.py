"""Softmax collapse on the batch at hand (arXiv 2501.04697)."""

from __future__ import annotations

from thalweg.probe import softmax_collapse
from thalweg.watch.moment import Moment, Raw, few, sensor

EXAMPLES = 1024


@sensor("softmax collapse", share=0.7, every=5, passes=0.2, needs=("output", "targets"))
def collapsed(at: Moment) -> list[Raw]:
    """Share of examples in which every logit but the largest has vanished from the softmax's sum."""
    assert at.output is not None and at.targets is not None
    if at.output.ndim != at.targets.ndim + 1 or not at.output.is_floating_point():
        return []
    found = softmax_collapse(few(at.output, EXAMPLES), few(at.targets, EXAMPLES))
    return [Raw("softmax collapse", found.fraction, extra={"zero loss": found.zero_loss})]
