"""Targets that nothing was trained on yet, and the loss of who answers them without looking at the input."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg._core.checks import check_choice
from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import call, quiet

Loss = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[Tensor, torch.Generator], Tensor]
IGNORED = -100  # as in torch's cross-entropy
KINDS = ("labels", "network", "shuffled")


@dataclass(frozen=True)
class FreshTargets:
    """Targets by task, the loss that scores them, and the loss of the best constant answer."""

    targets: list[Tensor]
    loss_fn: Loss
    baseline: float


def run(model: nn.Module, batch: Any) -> Tensor:
    """The model's output, its ``.logits``, or the first of a tuple."""
    output = call(model, batch)
    output = logits_of(output)
    if not isinstance(output, Tensor) or output.dim() < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"model must return a tensor (examples, ..., outputs) or .logits, got {got}")
    return output


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def mean_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


def redraw(model: nn.Module) -> None:
    """Fresh parameters in place, each module by its own rule."""
    for name, module in model.named_modules():
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if reset is not None:
            reset()
        elif any(True for _ in module.parameters(recurse=False)):
            raise ValueError(
                'targets must not be "network" for a model with parameters that cannot be drawn anew: '
                f"module {name!r} ({type(module).__name__}) has no reset_parameters"
            )


def _network(model: nn.Module, batch: Any, like: Tensor) -> Tensor:
    """Outputs of the model with fresh weights, each of mean 0 and variance 1 over the examples."""
    teacher = copy.deepcopy(model)
    redraw(teacher)
    with quiet(teacher):
        outputs = run(teacher, batch).to(like.dtype)
    rows = outputs.flatten(0, -2)
    spread = rows.std(0, correction=0)
    if not bool((spread > 0).all()):
        raise ValueError('targets must not be "network" where a fresh network answers all examples alike')
    return ((rows - rows.mean(0)) / spread).view_as(outputs)


def _shuffled(labels: Tensor, counted: Tensor, source: torch.Generator) -> Tensor:
    """The labels that count in another order; the others stay where they are."""
    order = torch.randperm(int(counted.sum()), generator=source).to(labels.device)
    return labels.masked_scatter(counted, labels[counted][order])


def _counted(labels: Tensor | None, places: torch.Size, classes: int) -> tuple[Tensor, Tensor]:
    """Labels as classes, and which of them the loss counts."""
    if labels is None or labels.shape != places:
        got = None if labels is None else tuple(labels.shape)
        raise ValueError(f"labels must have shape {tuple(places)} to be shuffled, got {got}")
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"labels must be classes, integers, to be shuffled, got {labels.dtype}")
    labels = labels.long()
    counted = labels != IGNORED
    those = labels[counted]
    if not len(those):
        raise ValueError(f"labels must hold one that counts, got {IGNORED} only")
    if not 0 <= int(those.min()) <= int(those.max()) < classes:
        raise ValueError(
            f"labels must be in [0, {classes}), the model's outputs, or {IGNORED} where none counts, got "
            f"{int(those.min())} to {int(those.max())}"
        )
    return labels, counted


def _entropy(labels: Tensor) -> float:
    share = torch.bincount(labels.flatten()).double() / labels.numel()
    return torch.special.entr(share).sum().item()


def fresh_targets(
    model: nn.Module,
    batch: Any,
    kind: str | Draw,
    labels: Tensor | None,
    tasks: int,
    loss_fn: Loss | None,
    baseline: float | None,
    seed: int,
) -> FreshTargets:
    """Draw the targets of all tasks; see :func:`thalweg.probe.plasticity`."""
    with quiet(model):
        like = run(model, batch)
    places, source = like.shape[:-1], torch.Generator().manual_seed(seed)
    if (callable(kind) or loss_fn is not None) and (loss_fn is None or baseline is None):
        raise ValueError(
            "loss_fn and baseline must both be given with targets or a loss of one's own, got "
            f"loss_fn={loss_fn!r}, baseline={baseline!r}"
        )
    if callable(kind):
        drawn = [kind(like, source) for _ in range(tasks)]
        usual, constant = cross_entropy, 0.0
    elif check_choice("targets", kind, KINDS) == "network":
        drawn = [_network(model, batch, like) for _ in range(tasks)]
        usual, constant = mean_square, 1.0
    elif kind == "labels":
        classes = like.shape[-1]
        if classes < 2:
            raise ValueError('targets must be "network" for a model with a single output, got "labels"')
        drawn = [torch.randint(classes, places, generator=source).to(like.device) for _ in range(tasks)]
        usual, constant = cross_entropy, math.log(classes)
    else:
        known, counted = _counted(labels, places, like.shape[-1])
        drawn = [_shuffled(known, counted, source) for _ in range(tasks)]
        usual, constant = cross_entropy, _entropy(known[counted])
    return FreshTargets(drawn, loss_fn or usual, constant if baseline is None else float(baseline))
