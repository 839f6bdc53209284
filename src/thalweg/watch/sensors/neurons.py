"""Dormant units by layer (arXiv 2302.12902)."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from thalweg.probe import dormant_neurons
from thalweg.probe._units import NoActivationsError
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, counted, few, sensor

EXAMPLES = 256
# A unit that is rarely active looks dormant on fewer.
ENOUGH = 64
DORMANT = 0.025
UNHEARD = "the model has no activation that could be heard, as a module or as a function of torch"


@sensor("dormant units", share=0.7, every=20, passes=1.0, needs=("model", "inputs"))
def dormant(at: Moment) -> list[Raw]:
    """Share of hidden units whose mean activation is at most 0.025 of their layer's mean.

    On 64 examples (or tokens) at least: small batches are put together with those of the last readings, each
    as the model answered it then. Of a model whose activations cannot be heard nothing is said.
    """
    assert at.model is not None and at.inputs is not None
    batch = few(as_batch(at.model, *at.inputs), EXAMPLES)
    try:
        found = dormant_neurons(at.model, batch, threshold=DORMANT)
    except NoActivationsError:
        return at.over(UNHEARD)
    held: deque[tuple[int, dict[str, Tensor]]] = at.memory.setdefault("held", deque())
    held.append((counted(batch), found.scores))
    while sum(count for count, _ in held) - held[0][0] >= ENOUGH:
        held.popleft()
    have = sum(count for count, _ in held)
    if have < ENOUGH:
        return at.silent(f"of the {ENOUGH} examples that it takes, {have} have come so far")
    at.silent(None)
    marks = {name: _score(name, held) <= DORMANT for name in found.scores}
    shares = torch.stack([mark.float().mean() for mark in marks.values()])
    total = torch.cat([mark.flatten() for mark in marks.values()]).float().mean()
    return [Raw("dormant units", total, tuple(marks), shares)]


def _score(name: str, held: deque[tuple[int, dict[str, Tensor]]]) -> Tensor:
    """Mean score of each unit of a layer over the batches in which it ran as it did in the last."""
    last = held[-1][1][name]
    same = [(count, scores[name]) for count, scores in held if name in scores]
    same = [(count, one) for count, one in same if one.shape == last.shape]
    return torch.stack([count * one for count, one in same]).sum(0) / sum(count for count, _ in same)
