"""Several processes that train one model, each on its part of the batch: one mean, and one choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel


def inner(model: nn.Module) -> tuple[nn.Module, Any]:
    """The module behind DistributedDataParallel and torch.compile, and the processes that train it.

    Those are None for a single one.
    """
    group = None
    while True:
        if isinstance(model, DistributedDataParallel):
            model, group = model.module, model.process_group
        elif isinstance(found := getattr(model, "_orig_mod", None), nn.Module):
            model = found
        else:
            return model, group


def several(group: Any) -> Any:
    """``group``, by default that of all processes; None if there is one process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    return None if distributed.get_world_size(group) == 1 else group or distributed.group.WORLD


def means(rows: Sequence[Tensor], group: Any) -> list[Tensor] | None:
    """The mean row of each matrix over the batches of all processes; None where nobody has any row of one."""
    if group is None:
        return [matrix.mean(0) for matrix in rows] if all(len(matrix) for matrix in rows) else None
    counts = torch.tensor([len(matrix) for matrix in rows], dtype=torch.float64)
    sums = [matrix.sum(0, dtype=torch.float64) for matrix in rows]
    whole = torch.cat([*sums, counts.to(rows[0].device)])
    distributed.all_reduce(whole, group=group)
    *found, counts = whole.split([len(one) for one in sums] + [len(rows)])
    if not bool(counts.all()):
        return None
    return [(one / count).to(matrix) for one, count, matrix in zip(found, counts, rows, strict=True)]


def of_first(tensors: Sequence[Tensor], group: Any) -> list[Tensor]:
    """These tensors as the first process of the group has them, and contiguous."""
    if group is None:
        return list(tensors)
    found = [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors]
    first = distributed.get_global_rank(group, 0)
    for tensor in found:
        distributed.broadcast(tensor, first, group=group)
    return found
