"""How far features and weights have moved since the run began (arXiv 1812.07956)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from thalweg.probe import gram_alignment, gram_matrix
from thalweg.probe._head import features_and_output, head_name
from thalweg.probe._thinned import thinned
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, kept, sensor
from thalweg.watch.whole_batches import part

EXAMPLES = 64
A_PART = "the model's last layer is given some of the examples only, such as an expert"
# Of each parameter so many entries stand for all.
ENTRIES = 1024


def _passes(at: Moment) -> float:
    return min(1.0, EXAMPLES / examples(at.inputs))


@sensor("feature alignment", share=0.4, every=20, passes=_passes, needs=("model", "inputs"))
def feature_alignment(at: Moment) -> list[Raw]:
    """Kernel alignment of the last layer's inputs with those at the first visit, on a few fixed examples.

    The layer named is the last, which these enter. With it the relative change, since then, of the weights
    that make these features. A model without trained weights before its last layer has no features to move.
    Batch normalisation takes the statistics of these examples: running ones move at first, whatever the
    features do.
    """
    assert at.model is not None and at.inputs is not None
    memory = at.memory
    if "head" not in memory:
        return _begin(at)
    features, _ = features_and_output(at.model, memory["batch"], memory["head"], own_statistics=True)
    weights = memory["weights"]
    if any(name not in at.named for name in weights):
        return []
    gram = gram_matrix(features)
    if gram.shape != memory["gram"].shape:
        return at.over(A_PART)
    if not bool(gram.any()):  # nothing can be told of features that are all alike
        return []
    alignment = gram_alignment(memory["gram"], gram)
    now = {name: _entries(at.named[name]) for name in weights}
    change = _size({name: now[name] - weights[name] for name in weights}, at) / memory["size"]
    return [_raw(alignment, change, memory)]


def _begin(at: Moment) -> list[Raw]:
    """Keep what later visits compare with."""
    assert at.model is not None and at.inputs is not None
    memory = at.memory
    batch = kept(part(at, as_batch(at.model, *at.inputs), EXAMPLES))
    head = head_name(at.model, batch) if examples(batch) > 1 else None
    if head is None:
        return at.over()
    last = {id(p) for p in at.model.get_submodule(head).parameters()}
    hidden = [name for name, p in at.named.items() if p.requires_grad and id(p) not in last]
    weights = {name: _entries(at.named[name]) for name in hidden}
    features, _ = features_and_output(at.model, batch, head, own_statistics=True)
    if len(features) < examples(batch):
        return at.over(A_PART)
    gram = gram_matrix(features)
    size = _size(weights, at) if weights else 0.0
    if not size or not bool(gram.any()):
        return at.over()
    memory |= {"head": head, "batch": batch, "weights": weights, "size": size, "gram": gram, "step": at.step}
    return [_raw(1.0, 0.0, memory)]


def _raw(alignment: float, change: float, memory: dict[str, Any]) -> Raw:
    extra = {"weight change": change, "since": float(memory["step"])}
    return Raw("feature alignment", alignment, (memory["head"],), torch.tensor([alignment]), extra)


def _entries(weight: Tensor) -> Tensor:
    """Evenly spread entries of a parameter, as float32."""
    return thinned(weight.detach().flatten(), ENTRIES).to(torch.float32, copy=True)


def _size(entries: dict[str, Tensor], at: Moment) -> float:
    """Euclidean norm of all weights together, as far as these entries tell."""
    squares: Any = 0.0
    for name, values in entries.items():
        squares = squares + values.square().sum() * (at.named[name].numel() / len(values))
    return float(squares) ** 0.5
