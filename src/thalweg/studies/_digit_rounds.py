"""What studies of iterative pruning share: an MLP on digits, trained over fixed batches from a step on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thalweg import optim
from thalweg.surgery import hold_masks
from thalweg.tasks import MLP, Split, handwritten_digits

BATCH = 64


@cache
def digits() -> Split:
    return handwritten_digits()


def network(widths: Sequence[int], seed: int) -> nn.Module:
    return MLP((64, *widths, 10), seed=seed)


def order(seed: int, steps: int) -> list[Tensor]:
    """The examples of each step: reshuffled passes, the same for the same seed."""
    source = torch.Generator().manual_seed(seed)
    count = len(digits().train[1])
    passes = -(-steps // (count // BATCH))
    batches = [b for _ in range(passes) for b in torch.randperm(count, generator=source).split(BATCH)]
    return [batch for batch in batches if len(batch) == BATCH][:steps]


def train(
    model: nn.Module,
    masks: dict[str, Tensor],
    batches: Sequence[Tensor],
    first: int,
    rate: Any,
    lr: float = 0.1,
    nesterov: bool = False,
) -> dict[str, Any]:
    """SGD with momentum 0.9 over ``batches[first:]``, at ``lr * rate(step)``; returns its spec."""
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=nesterov)
    spec = dict(optim.spec(optimizer))
    held = hold_masks(optimizer, model, masks)
    inputs, targets = digits().train
    model.train()
    for step in range(first, len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = lr * rate(step)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batches[step]]), targets[batches[step]]).backward()
        optimizer.step()
    held.remove()
    return spec


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """On the test images."""
    inputs, targets = digits().test
    return (model(inputs).argmax(1) == targets).float().mean().item()
