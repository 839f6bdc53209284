"""Whether a few features of the tangent kernel give every example its margin (arXiv 2011.09468)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe import example_gradient_gram, gradient_starvation
from thalweg.probe._logits import logits_of
from thalweg.probe._margins import margins_of
from thalweg.probe._quiet import call, quiet
from thalweg.watch.inputs import as_batch
from thalweg.watch.moment import Moment, Raw, examples, few, kept, sensor
from thalweg.watch.normalising import SYNCHRONISED, asks_other_processes, mixing_examples
from thalweg.watch.whole_batches import why_whole

EXAMPLES = 64
# Where examples are normalised together, with so many: fewer would have other statistics than the batch.
TOGETHER = 256
# A gradient for each example is written out then: half a gigabyte.
WEIGHTS = 2**21
IGNORED = -100
# Fewer examples a class than that, and any margins look like a feature for each class.
A_CLASS = 4
STRONG = 0.1


def _passes(at: Moment) -> float:
    assert at.model is not None
    have = examples(at.inputs)
    if mixing_examples(at.model):
        return 2 * min(EXAMPLES, have) * min(1.0, TOGETHER / have)
    return 6 * min(1.0, EXAMPLES / have)


@sensor("gradient starvation", share=0.5, every=10, passes=_passes, needs=("model", "inputs", "targets"))
def starvation(at: Moment) -> list[Raw]:
    r"""Part of the margins' common direction that the strongest features hold, one feature a class.

    On 64 fixed examples, with :math:`K = U S^2 U^\top` the inner products of the gradients of the examples'
    margins (from one backward pass, nothing written out): :math:`\sum_{j \le c} (1^\top u_j)^2 / n`, in
    [0, 1]. At 1 a step along the c strongest features raises all margins at once. In ``extra``: mean miss
    :math:`\sigma(-m)`, scatter of the margins over their mean, their share that comes from these features,
    and how many others are at least a tenth as strong as the strongest. Not for sequences, nor for more
    classes than a quarter of the examples.

    Where batch normalisation normalises by the batch, so it does here, by up to 256 examples, and a gradient
    is taken of each of the 64 margins: running statistics give a false picture, of 0.95 for 0.05 to 0.5 on
    two classes of digits. That is some 128 passes, and not for more than two million weights. Many features
    are nearly as strong as the strongest then, and their order is chance: it is the features that hold most,
    one a class, of all that are at least a tenth as strong.
    """
    assert at.model is not None and at.inputs is not None and at.targets is not None
    if (why := why_whole(at)) is not None:
        return at.silent(why)
    if asks_other_processes(at.model):
        return at.silent(SYNCHRONISED)
    at.silent(None)
    memory = at.memory
    if "batch" not in memory:
        batch = kept((few(as_batch(at.model, *at.inputs), EXAMPLES), few(at.targets, EXAMPLES)))
        memory["classes"] = classes = _classes(at.model, batch)
        if not classes:
            return at.over("it is for one class an example, not for sequences or numbers")
        if len(batch[1]) < A_CLASS * classes:
            return at.over(f"a batch needs {A_CLASS} examples a class, {A_CLASS * classes} in all")
        memory["batch"] = batch
        if mixing_examples(at.model):
            weights = sum(p.numel() for p in at.model.parameters() if p.requires_grad)
            if weights > WEIGHTS:
                return at.over(f"examples are normalised together, and of {weights:,} weights: too many")
            memory["together"] = _together(at)
    classes = memory["classes"]
    try:
        margins, strengths, features = _features(at)
    except ValueError:
        # Examples that bear on each other, or numbers too large to tell: none has a gradient of its own.
        return []
    along = features.sum(0)
    top = torch.arange(classes, device=along.device)
    if "together" in memory:
        strong = strengths >= STRONG * strengths[0]
        top = (along.square() * strong).topk(classes).indices
    held = along[top].square().sum() / len(margins)
    extra = {
        "miss": torch.sigmoid(-margins).mean(),
        "scatter": margins.std() / margins.mean().abs(),
        "share": (along * (features.T @ margins))[top].sum() / margins.sum(),
        "others": ((strengths >= STRONG * strengths[0]).sum() - classes).clamp_min(0),
        "features": float(classes),
    }
    return [Raw("strongest features", held, extra=extra)]


def _together(at: Moment) -> tuple[Any, Tensor]:
    """The examples with others that they are normalised with, whose own margins do not count."""
    assert at.model is not None and at.inputs is not None
    inputs, targets = few(as_batch(at.model, *at.inputs), TOGETHER), few(at.targets, TOGETHER).clone()
    targets[EXAMPLES:] = IGNORED
    return kept((inputs, targets))


def _features(at: Moment) -> tuple[Tensor, Tensor, Tensor]:
    """Margins, strengths and features of the examples."""
    assert at.model is not None
    if "together" in at.memory:
        known = gradient_starvation(at.model, *at.memory["together"], ignore_index=IGNORED)
        return known.margins, known.strengths, known.features
    found = example_gradient_gram(at.model, at.memory["batch"], _margins)
    squares, features = torch.linalg.eigh(found.gram.detach())
    return found.losses.detach().double(), squares.flip(0).clamp_min(0).sqrt(), features.flip(1)


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
