"""Dormant units by layer (arXiv 2302.12902)."""

from __future__ import annotations

import torch

from thalweg.probe import dormant_neurons
from thalweg.probe._units import NoActivationsError
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, few, sensor

EXAMPLES = 256
UNHEARD = "the model has no activation that could be heard, as a module or as a function of torch"


@sensor("dormant units", share=0.7, every=20, passes=1.0, needs=("model", "inputs"))
def dormant(at: Moment) -> list[Raw]:
    """Share of hidden units whose mean activation is at most 0.025 of their layer's mean.

    Of a model whose activations cannot be heard nothing is said.
    """
    assert at.model is not None and at.inputs is not None
    if at.memory.get("silent"):
        return []
    try:
        found = dormant_neurons(at.model, few(as_batch(at.model, *at.inputs), EXAMPLES))
    except NoActivationsError:
        return at.silent(UNHEARD)
    shares = torch.tensor(list(found.fraction.values()))
    return [Raw("dormant units", found.total, tuple(found.fraction), shares)]
