"""Accuracy and loss on training and held-out data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._quiet import call, quiet
from thalweg.watch.moment import Moment, Raw, examples, few, sensor
from thalweg.watch.scores import Score, UnknownTargetsError, outputs_of, score

EXAMPLES = 1024
AT_ONCE = 128
NO_ACCURACY = "gives only the loss: targets are numbers, not classes"


def _passes(at: Moment) -> float:
    """Forward passes of the training batch that two evaluations amount to."""
    assert at.evaluate is not None
    judged = sum(min(examples(pair[0]), EXAMPLES) for pair in at.evaluate)
    return judged / examples(at.inputs if at.inputs is not None else at.batch)


@sensor("accuracy", share=1.5, every=10, passes=_passes, needs=("model", "evaluate"))
def accuracy(at: Moment) -> list[Raw]:
    """Accuracy on a fixed part of the training and of the test data, and the loss on the latter.

    The loss is the cross entropy of classes, one of several or yes or no each, and the mean squared error of
    numbers, which have no accuracy. Targets of -100 do not count.
    """
    assert at.model is not None and at.evaluate is not None
    memory = at.memory
    try:
        train, test = (_judged(at.model, few(tuple(pair), EXAMPLES)) for pair in at.evaluate)
    except UnknownTargetsError as error:
        return at.over(str(error))
    if not train.counted or not test.counted:
        return at.over("evaluate must hold targets that count, got only -100")
    raws = [Raw("test loss", test.loss / test.counted)]
    if train.right is None or test.right is None:
        memory["unjudged"] = NO_ACCURACY
        return raws
    return [
        Raw("train accuracy", train.right / train.counted),
        Raw("test accuracy", test.right / test.counted),
        *raws,
    ]


def _judged(model: nn.Module, pair: tuple[Any, Tensor]) -> Score:
    inputs, targets = pair
    # In parts where that is simple, so that a small training batch does not meet a large peak of memory.
    parts = [pair]
    if isinstance(inputs, Tensor) and inputs.ndim and targets.ndim and len(inputs) == len(targets):
        parts = list(zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True))
    with quiet(model):
        found = [score(model, part, outputs_of(call(model, part)), wanted) for part, wanted in parts]
    rights = [one.right for one in found if one.right is not None]
    right = torch.stack(rights).sum() if len(rights) == len(found) else None
    return Score(right, torch.stack([one.loss for one in found]).sum(), sum(one.counted for one in found))
