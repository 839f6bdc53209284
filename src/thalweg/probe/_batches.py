"""Some examples of a batch, whatever it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def take(batch: Any, index: Tensor | slice, examples: int) -> Any:
    """Rows ``index`` of every tensor in ``batch`` whose first dimension counts the ``examples``."""
    if isinstance(batch, Tensor):
        if not batch.dim() or len(batch) != examples:
            return batch
        return batch[index if isinstance(index, slice) else index.to(batch.device)]
    if isinstance(batch, Mapping):
        return {name: take(value, index, examples) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(take(value, index, examples) for value in batch)
    return batch
