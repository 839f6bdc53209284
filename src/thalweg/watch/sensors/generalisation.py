"""Accuracy and loss on training and held-out data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thalweg.probe._quiet import call, quiet
from thalweg.watch.moment import Moment, Raw, examples, few, sensor

EXAMPLES = 1024
AT_ONCE = 128


def _passes(at: Moment) -> float:
    """Forward passes of the training batch that two evaluations amount to."""
    assert at.evaluate is not None
    judged = sum(min(examples(pair[0]), EXAMPLES) for pair in at.evaluate)
    return judged / examples(at.inputs if at.inputs is not None else at.batch)


@sensor("accuracy", share=1.5, every=10, passes=_passes, needs=("model", "evaluate"))
def accuracy(at: Moment) -> list[Raw]:
    """Accuracy on a fixed part of the training and of the test data, and the cross entropy of the latter."""
    assert at.model is not None and at.evaluate is not None
    train, _ = _score(at.model, few(tuple(at.evaluate[0]), EXAMPLES))
    test, loss = _score(at.model, few(tuple(at.evaluate[1]), EXAMPLES))
    return [Raw("train accuracy", train), Raw("test accuracy", test), Raw("test loss", loss)]


def _score(model: nn.Module, pair: tuple[Any, Tensor]) -> tuple[Tensor, Tensor]:
    inputs, targets = pair
    # In parts where that is simple, so that a small training batch does not meet a large peak of memory.
    if isinstance(inputs, Tensor):
        parts = list(zip(inputs.split(AT_ONCE), targets.split(AT_ONCE), strict=True))
    else:
        parts = [(inputs, targets)]
    right, loss = [], []
    with quiet(model):
        for part, wanted in parts:
            logits = call(model, part)
            flat, wanted = logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1)
            right.append((flat.argmax(-1) == wanted).float())
            loss.append(F.cross_entropy(flat.float(), wanted, reduction="none"))
    return torch.cat(right).mean(), torch.cat(loss).mean()
