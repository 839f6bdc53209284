"""What a second pass over the same batch should leave alone: running statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["frozen_statistics"]


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within this block the model's buffers may move; after it they are as they were.

    Around the second pass of :class:`thalweg.optim.SAM`, so that the running statistics of batch norm
    advance once a step, at the weights themselves. The block must hold the backward pass too::

        loss_fn(model(x), y).backward()
        opt.ascend()
        opt.zero_grad()
        with optim.frozen_statistics(model):
            loss_fn(model(x), y).backward()
        opt.step()
    """
    kept = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in kept:
                buffer.copy_(before)
                module._buffers[name] = buffer  # some modules put a new tensor in its place
