"""Dormant units by layer (arXiv 2302.12902)."""

from __future__ import annotations

import torch

from thalweg.probe import dormant_neurons
from thalweg.watch.moment import Moment, Raw, few, sensor

EXAMPLES = 256


@sensor("dormant units", share=0.7, every=20, passes=1.0, needs=("model", "batch"))
def dormant(at: Moment) -> list[Raw]:
    """Share of hidden units whose mean activation is at most 0.025 of their layer's mean."""
    assert at.model is not None
    found = dormant_neurons(at.model, few(at.memory.get("inputs", at.batch), EXAMPLES))
    return [
        Raw("dormant units", found.total, tuple(found.fraction), torch.tensor(list(found.fraction.values())))
    ]
