"""Accuracy and loss on training and held-out data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from thalweg.probe._quiet import call, quiet
from thalweg.watch.moment import Moment, Raw, few, sensor

EXAMPLES = 1024


@sensor("accuracy", share=1.5, every=10, passes=3.0, needs=("model", "evaluate"))
def accuracy(at: Moment) -> list[Raw]:
    """Accuracy on a fixed part of the training and of the test data, and the cross entropy of the latter."""
    assert at.model is not None and at.evaluate is not None
    train, _ = _score(at.model, few(tuple(at.evaluate[0]), EXAMPLES))
    test, loss = _score(at.model, few(tuple(at.evaluate[1]), EXAMPLES))
    return [Raw("train accuracy", train), Raw("test accuracy", test), Raw("test loss", loss)]


def _score(model: nn.Module, pair: tuple[Any, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = pair
    with quiet(model):
        logits = call(model, inputs)
    flat, wanted = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    return (flat.argmax(-1) == wanted).float().mean(), F.cross_entropy(flat.float(), wanted)
