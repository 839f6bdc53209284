"""Neural collapse of the features that enter the last layer (arXiv 2008.08186, 2210.16658)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe import neural_collapse_of
from thalweg.probe._batches import take
from thalweg.probe._head import features_and_output, head_name
from thalweg.probe._thinned import distance
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, few, kept, sensor
from thalweg.watch.whole_batches import why_whole

EXAMPLES = 512
# So many examples a class, on average, before anything is said of the scatter within a class.
EACH = 5
# Below this accuracy on the batch at hand nothing has collapsed, and nothing is measured.
FITTED = 0.95
NO_HEAD = "no one linear layer gives the logits"
NEEDS = ("model", "inputs", "output", "targets")


def _passes(at: Moment) -> float:
    return EXAMPLES / examples(at.inputs)


@sensor("neural collapse", share=0.5, every=20, passes=_passes, needs=NEEDS)
def class_features(at: Moment) -> list[Raw]:
    """Scatter within classes over that between them, and other signs of collapse, once the batch is fitted.

    On training examples given as ``evaluate``, evenly spread, or else on batches gathered so far; up to 512.
    """
    assert at.model is not None and at.output is not None and at.targets is not None
    logits, targets, memory = at.output, at.targets, at.memory
    if targets.dim() != 1 or targets.is_floating_point():
        return at.silent("it is for one class an example, not for sequences or numbers")
    if logits.dim() != 2 or len(logits) != len(targets) or logits.shape[1] < 2:
        return at.silent("it needs logits of shape (examples, classes), of two classes at least")
    if at.evaluate is None and (why := why_whole(at)) is not None:
        return at.silent(why)
    data = _examples(at)
    if data is None:
        return at.silent("the model's inputs are no batches of one shape that could be gathered")
    at.silent(None)
    if float((logits.argmax(1) == targets).float().mean()) < FITTED:
        return []
    inputs, labels = data
    classes = len(labels.unique())
    if classes < 2 or len(labels) < EACH * classes:
        return []
    if "head" not in memory:
        memory["head"] = head_name(at.model, few(inputs, 64))
    if memory["head"] is None:
        return at.over(NO_HEAD)
    features, output = features_and_output(at.model, inputs, memory["head"])
    head = at.model.get_submodule(memory["head"])
    assert isinstance(head, nn.Linear)
    shape = (len(labels), len(head.weight))
    if features.dim() != 2 or len(features) != len(labels) or getattr(output, "shape", None) != shape:
        return at.over(NO_HEAD)
    found = neural_collapse_of(features, labels, head.weight, head.bias)
    # The mean of few examples lies closer to them than that of the class.
    unbiased = len(labels) / (len(labels) - classes)
    extra: dict[str, float | Tensor] = {
        "error": (output.argmax(1) != labels).float().mean(),
        "classes": float(classes),
        "nc1": found.nc1,
        "nc2": found.nc2,
        "norms": found.nc2_norms,
        "nc3": found.nc3 or 0.0,
        "nc4": found.nc4 or 0.0,
    }
    scatter = found.variability * unbiased
    return [Raw("neural collapse", scatter, (memory["head"],), torch.tensor([scatter]), extra)]


def _examples(at: Moment) -> tuple[Any, Tensor] | None:
    """Training examples that stay the same from visit to visit, once there are enough."""
    if at.evaluate is not None:
        inputs, labels = at.evaluate[0]
        if labels.dim() != 1 or labels.is_floating_point():
            return None
        # From all over it: data that come sorted by class would give the first few classes.
        every = slice(None, None, distance(len(labels), EXAMPLES))
        return take(inputs, every, len(labels)), labels[every]
    assert at.model is not None and at.inputs is not None and at.targets is not None
    inputs = as_batch(at.model, *at.inputs)
    gathered = at.memory.get("gathered")
    if gathered is None or len(gathered[1]) < EXAMPLES:
        more = kept((inputs, at.targets))
        if gathered is not None:
            try:
                more = _joined(gathered[0], more[0]), torch.cat((gathered[1], more[1]))
            except (TypeError, ValueError, RuntimeError):
                # Of another shape than before, such as sentences padded to another length.
                return None
        gathered = at.memory["gathered"] = few(more, EXAMPLES)
    return gathered


def _joined(before: Any, more: Any) -> Any:
    """Two batches of the same form, as one."""
    if isinstance(before, Tensor):
        return torch.cat((before, more)) if before.ndim else before
    if isinstance(before, Mapping):
        return {key: _joined(value, more[key]) for key, value in before.items()}
    if isinstance(before, tuple | list):
        return type(before)(_joined(*pair) for pair in zip(before, more, strict=True))
    return before
