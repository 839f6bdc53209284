"""Whether a few features of the tangent kernel give every example its margin (arXiv 2011.09468)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe import example_gradient_gram
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.probe.starvation import margins_of
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, few, kept, sensor

EXAMPLES = 64
# Fewer examples a class than that, and any margins look like a feature for each class.
A_CLASS = 4
STRONG = 0.1


def _passes(at: Moment) -> float:
    return 6 * min(1.0, EXAMPLES / examples(at.inputs))


@sensor("gradient starvation", share=0.5, every=10, passes=_passes, needs=("model", "inputs", "targets"))
def starvation(at: Moment) -> list[Raw]:
    r"""Part of the margins' common direction that the strongest features hold, one feature a class.

    On 64 fixed examples, with :math:`K = U S^2 U^\top` the inner products of the gradients of the examples'
    margins (from one backward pass, nothing written out): :math:`\sum_{j \le c} (1^\top u_j)^2 / n`, in
    [0, 1]. At 1 a step along the c strongest features raises all margins at once. In ``extra``: mean miss
    :math:`\sigma(-m)`, scatter of the margins over their mean, their share that comes from these features,
    and how many others are at least a tenth as strong as the strongest. Not for sequences, nor for more
    classes than a quarter of the examples.
    """
    assert at.model is not None and at.inputs is not None and at.targets is not None
    memory = at.memory
    if "batch" not in memory:
        batch = kept((few(as_batch(at.model, *at.inputs), EXAMPLES), few(at.targets, EXAMPLES)))
        memory["classes"] = classes = _classes(at.model, batch)
        if not classes:
            return at.over("it is for one class an example, not for sequences or numbers")
        if len(batch[1]) < A_CLASS * classes:
            return at.over(f"a batch needs {A_CLASS} examples a class, {A_CLASS * classes} in all")
        memory["batch"] = batch
    classes = memory["classes"]
    try:
        found = example_gradient_gram(at.model, memory["batch"], _margins)
    except ValueError:
        # Examples that bear on each other, or numbers too large to tell: none has a gradient of its own.
        return []
    margins = found.losses.detach().double()
    squares, features = torch.linalg.eigh(found.gram.detach())
    strengths, features = squares.flip(0).clamp_min(0).sqrt(), features.flip(1)
    along = features.sum(0)
    top = slice(0, classes)
    held = along[top].square().sum() / len(margins)
    extra = {
        "miss": torch.sigmoid(-margins).mean(),
        "scatter": margins.std() / margins.mean().abs(),
        "share": (along * (features.T @ margins))[top].sum() / margins.sum(),
        "others": ((strengths >= STRONG * strengths[0]).sum() - classes).clamp_min(0),
        "features": float(classes),
    }
    return [Raw("strongest features", held, extra=extra)]


def _margins(model: nn.Module, batch: Any) -> Tensor:
    output = call(model, batch[0])
    return margins_of(output, batch[1])


def _classes(model: nn.Module, batch: Any) -> int:
    """How many classes there are; 0 if examples have no class each."""
    with quiet(model):
        output = call(model, batch[0])
    output, targets = logits_of(output), batch[1]
    if not isinstance(output, Tensor) or targets.dtype is not torch.int64 or targets.ndim != 1:
        return 0
    fits = output.ndim == 2 and output.is_floating_point() and len(output) == len(targets)
    known = fits and bool(((targets >= 0) & (targets < output.shape[1])).all())
    return output.shape[1] if known and output.shape[1] > 1 else 0
