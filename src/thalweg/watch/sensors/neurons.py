"""Dormant units by layer (arXiv 2302.12902)."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from thalweg.probe._units import NoActivationsError
from thalweg.probe.neurons import activity
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, counted, sensor
from thalweg.watch.whole_batches import part

EXAMPLES = 256
# A unit that is rarely active looks dormant on fewer.
ENOUGH = 64
DORMANT = 0.025
UNHEARD = "the model has no activation that could be heard, as a module or as a function of torch"


@sensor("dormant units", share=0.7, every=20, passes=1.0, needs=("model", "inputs"))
def dormant(at: Moment) -> list[Raw]:
    """Share of hidden units whose mean activation is at most 0.025 of their layer's mean.

    On 64 examples (or tokens) at least: small batches are put together with those of the last readings, each
    as the model answered it then; for each layer on its own, since an expert is given some of them. What
    makes the model's output is no hidden unit: an autoencoder's pixel may be dark, and a label rare. Of a
    model whose activations cannot be heard nothing is said.
    """
    assert at.model is not None and at.inputs is not None
    batch = part(at, as_batch(at.model, *at.inputs), EXAMPLES)
    try:
        found = activity(at.model, batch)
    except NoActivationsError:
        return at.over(UNHEARD)
    held: dict[str, deque[tuple[int, Tensor]]] = at.memory.setdefault("held", {})
    for name in found.scores.keys() - found.outputs:
        _hold(held, name, min(counted(batch), found.entries[name]), found.scores[name])
    # In the order in which they run, and those at the end that did not run this time.
    names = [*(name for name in found.scores if name in held), *sorted(held.keys() - found.scores.keys())]
    have = {name: sum(count for count, _ in held[name]) for name in names}
    marks = {name: _score(held[name]) <= DORMANT for name in names if have[name] >= ENOUGH}
    if not marks:
        most = max(have.values(), default=0)
        return at.silent(f"of the {ENOUGH} examples that it takes, {most} have come so far")
    at.silent(None)
    shares = torch.stack([mark.float().mean() for mark in marks.values()])
    total = torch.cat([mark.flatten() for mark in marks.values()]).float().mean()
    return [Raw("dormant units", total, tuple(marks), shares)]


def _hold(held: dict[str, deque[tuple[int, Tensor]]], name: str, count: int, scores: Tensor) -> None:
    """Keep a layer's scores with those of before that together are of enough examples."""
    past = held.setdefault(name, deque())
    if past and past[-1][1].shape != scores.shape:
        past.clear()
    past.append((count, scores))
    while sum(one for one, _ in past) - past[0][0] >= ENOUGH:
        past.popleft()


def _score(past: deque[tuple[int, Tensor]]) -> Tensor:
    """Mean score of each unit over the examples that are held."""
    return torch.stack([count * one for count, one in past]).sum(0) / sum(count for count, _ in past)
