"""Some examples of a batch, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def pair(name: str, value: Any) -> tuple[Any, Tensor]:
    """``value`` as inputs and what goes with them.

    Raises:
        ValueError: it is no such pair.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = type(value).__name__ + (f" of {len(value)}" if isinstance(value, tuple | list) else "")
        raise ValueError(f"{name} must be a pair of inputs and targets, got {got}")
    if not isinstance(value[1], Tensor):
        raise ValueError(f"{name} must have a tensor of targets, got {type(value[1]).__name__}")
    return value[0], value[1]


def take(batch: Any, index: Tensor | slice, examples: int) -> Any:
    """Rows ``index`` of every tensor in ``batch`` whose first dimension counts the ``examples``.

    Of a contiguous tensor they are contiguous too: a model may say ``x.view(-1)``.
    """
    if isinstance(batch, Tensor):
        if not batch.dim() or len(batch) != examples:
            return batch
        part = batch[index if isinstance(index, slice) else index.to(batch.device)]
        return part.contiguous() if batch.layout == torch.strided and batch.is_contiguous() else part
    if isinstance(batch, Mapping):
        return {name: take(value, index, examples) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(take(value, index, examples) for value in batch)
    return batch
