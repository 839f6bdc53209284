"""Memorisation at its simplest: accuracy on what was trained on, minus accuracy on what was not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from thalweg._core.checks import check_count
from thalweg.probe._batches import pair, take
from thalweg.probe._example_batch import changed
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["AccuracyGap", "accuracy_gap"]


@dataclass(frozen=True)
class AccuracyGap:
    """Shares of correct predictions, in [0, 1].

    Attributes:
        train, test: accuracy on each set.
        gap: ``train - test``.
    """

    train: float
    test: float
    gap: float


def _accuracy(model: nn.Module, name: str, given: tuple[Any, Tensor], batch_size: int, ignore: int) -> float:
    inputs, targets = pair(name, given)
    tensors: list[Tensor] = []
    changed(inputs, tensors.append)
    first = tensors[0] if tensors else targets.new_empty(0)
    examples = len(first) if first.dim() else 0
    if not targets.dim() or not examples or len(targets) != examples:
        shapes = f"{tuple(first.shape)} and {tuple(targets.shape)}"
        raise ValueError(f"{name} must hold as many inputs as targets and at least one, got shapes {shapes}")
    correct, counted = 0, 0
    for start in range(0, examples, batch_size):
        part = slice(start, start + batch_size)
        wanted = targets[part]
        logits = call(model, take(inputs, part, examples))
        logits = logits_of(logits)
        if not isinstance(logits, Tensor) or logits.shape[:-1] != wanted.shape:
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(
                f"model must return {name} logits of shape {tuple(wanted.shape)} + (classes,), got {got}"
            )
        if logits.shape[-1] < 2:
            # Its argmax is class 0 whatever it says.
            raise ValueError(
                f"model must return a {name} logit for each of two classes or more, got one logit"
            )
        if not bool(logits.isfinite().all()):
            # argmax of NaN is a class like any other and would count as right by chance.
            raise ValueError(f"model must return finite {name} logits, got NaN or infinity")
        counts = wanted != ignore
        classes = wanted[counts].double()
        strange = (classes < 0) | (classes >= logits.shape[-1]) | (classes != classes.floor())
        if bool(strange.any()):
            # No prediction equals them, so that they would count as wrong whatever the model says.
            raise ValueError(
                f"{name} targets must be classes in [0, {logits.shape[-1]}) or ignore_index={ignore}, "
                f"got {classes[strange][0].item():g}"
            )
        correct += int(((logits.argmax(-1) == wanted) & counts).sum())
        counted += int(counts.sum())
    if not counted:
        raise ValueError(f"{name} targets must hold one that counts, got only ignore_index={ignore}")
    return correct / counted


@costs(2, 0, memory="the activations of one batch")
def accuracy_gap(
    model: nn.Module,
    train: tuple[Any, Tensor],
    test: tuple[Any, Tensor],
    *,
    batch_size: int = 512,
    ignore_index: int = -100,
) -> AccuracyGap:
    """Accuracy on the training set, on the test set, and the difference.

    Costs one forward pass over both sets. Token models are counted by position.

    Args:
        model: maps inputs to logits of shape (..., classes), as a tensor, as ``.logits`` or first in a tuple;
            run in evaluation mode without gradients, its ``training`` flags are put back. Behind DDP or
            ``torch.compile`` the module itself is run.
        train, test: (inputs, targets), batched along the first dimension of both; inputs a tensor, a tuple of
            positional or a mapping of keyword arguments, targets of shape (...).
        batch_size: examples a forward pass.
        ignore_index: target of positions that do not count.

    Raises:
        ValueError: a set is empty or its sizes differ; a target is no class; logits are not finite, do not
            fit the targets, or are one for yes or no.
    """
    check_count("batch_size", batch_size)
    model = bare(model)
    with quiet(model):
        on_train = _accuracy(model, "train", train, batch_size, ignore_index)
        on_test = _accuracy(model, "test", test, batch_size, ignore_index)
    return AccuracyGap(on_train, on_test, on_train - on_test)
