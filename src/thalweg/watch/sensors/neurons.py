"""Dormant units by layer (arXiv 2302.12902)."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from thalweg.probe import dormant_neurons
from thalweg.probe._units import is_activation
from thalweg.watch.moment import Moment, Raw, few, sensor

EXAMPLES = 256


@sensor("dormant units", share=0.7, every=20, passes=1.0, needs=("model", "inputs"))
def dormant(at: Moment) -> list[Raw]:
    """Share of hidden units whose mean activation is at most 0.025 of their layer's mean.

    Of a model whose activations are no modules, such as a recurrent network, nothing is said.
    """
    assert at.model is not None and at.inputs is not None
    if not any(is_activation(module) for module in at.model.modules()):
        return []
    found = dormant_neurons(at.model, few(_as_batch(at.model, *at.inputs), EXAMPLES))
    shares = torch.tensor(list(found.fraction.values()))
    return [Raw("dormant units", found.total, tuple(found.fraction), shares)]


def _as_batch(model: nn.Module, positional: tuple, keywords: dict[str, Any]) -> Any:
    """The arguments of a call as a probe takes them: all positional or all by keyword."""
    if positional and keywords:
        return inspect.signature(model.forward).bind(*positional, **keywords).arguments
    return positional or keywords
