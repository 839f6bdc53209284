"""How good a model's outputs are, whatever they are: classes, yes or no, or numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.probe._logits import logits_of
from thalweg.watch.labels import IGNORED, beside_logits

__all__ = ["Score", "UnknownTargetsError", "outputs_of", "score"]


class UnknownTargetsError(ValueError):
    """Outputs and targets fit in no way that is known."""


class Score(NamedTuple):
    """Sums over ``counted`` targets: how many are ``right`` (None of numbers), and ``loss``."""

    right: Tensor | None
    loss: Tensor
    counted: int


def outputs_of(output: Any) -> Tensor:
    """The tensor of logits or numbers: itself, ``.logits`` or its entry, or the first of a tuple.

    Raises:
        UnknownTargetsError: there is none.
    """
    found = logits_of(output)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.ndim:
        raise UnknownTargetsError(
            "the model must give logits: a tensor, a tuple that begins with one, or something with .logits, "
            f"got {type(output).__name__}"
        )
    return found.float()


def score(model: nn.Module, inputs: Any, outputs: Tensor, targets: Tensor) -> Score:
    """Of classes, (..., C) beside (...) or (N, C, ...) beside (N, ...), of shares, of 0 and 1, or of numbers.

    Targets of -100 do not count; those of a causal language model are moved beside their logits.

    Raises:
        UnknownTargetsError: none of these.
    """
    shares = targets.is_floating_point()
    if not shares and outputs.shape[-1] > 1 and outputs.shape[:-1] == targets.shape:
        return _of_classes(outputs.flatten(0, -2), beside_logits(model, inputs, targets).flatten())
    if not shares and outputs.ndim > 2 and outputs.shape[:1] + outputs.shape[2:] == targets.shape:
        return _of_classes(outputs.movedim(1, -1).flatten(0, -2), targets.flatten())
    if outputs.numel() != targets.numel() or len(outputs) != len(targets):
        raise UnknownTargetsError(
            f"targets of shape {tuple(targets.shape)} and {targets.dtype} fit no outputs of shape "
            f"{tuple(outputs.shape)}: they must be classes or numbers beside them"
        )
    wanted = targets.reshape(outputs.shape).float()
    if shares and outputs.ndim > 1 and outputs.shape[-1] > 1 and _are_shares(wanted):
        outputs, wanted = outputs.flatten(0, -2), wanted.flatten(0, -2)
        right = outputs.argmax(-1) == wanted.argmax(-1)
        return Score(right.sum(), F.cross_entropy(outputs, wanted, reduction="sum"), len(wanted))
    if not shares:
        outputs, wanted = outputs[wanted != IGNORED], wanted[wanted != IGNORED]
    if not bool(((wanted == 0) | (wanted == 1)).all()):
        return Score(None, F.mse_loss(outputs, wanted, reduction="sum"), wanted.numel())
    # Between 0 and 1 throughout, they have been through a sigmoid.
    done = bool(((outputs >= 0) & (outputs <= 1)).all())
    loss = F.binary_cross_entropy if done else F.binary_cross_entropy_with_logits
    right = (outputs > (0.5 if done else 0.0)) == (wanted > 0.5)
    return Score(right.sum(), loss(outputs, wanted, reduction="sum"), wanted.numel())


def _of_classes(logits: Tensor, targets: Tensor) -> Score:
    counts = targets != IGNORED
    logits, targets = logits[counts], targets[counts].long()
    if not bool(((targets >= 0) & (targets < logits.shape[1])).all()):
        raise UnknownTargetsError(f"targets must be classes from 0 to {logits.shape[1] - 1}, or -100")
    right = (logits.argmax(1) == targets).sum()
    return Score(right, F.cross_entropy(logits, targets, reduction="sum"), len(targets))


def _are_shares(wanted: Tensor) -> bool:
    sums = wanted.sum(-1)
    return bool((wanted >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
