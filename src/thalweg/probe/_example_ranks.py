"""The processes among which a DistributedDataParallel model's batch is shared."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def group_of(model: nn.Module) -> Any:
    """The process group of a model under DDP (also inside torch.compile); None for any other model."""
    inner = getattr(model, "_orig_mod", model)
    return inner.process_group if isinstance(inner, DistributedDataParallel) else None


def summed(t: Tensor, group: Any) -> Tensor:
    """The sum over all processes; ``t`` itself without a group."""
    if group is None:
        return t
    whole = t.clone()
    dist.all_reduce(whole, group=group)
    return whole


def gathered(t: Tensor, group: Any) -> Tensor:
    """The rows of all processes, in the order of their ranks; processes may hold different numbers."""
    if group is None:
        return t
    ranks = dist.get_world_size(group)
    counts = [t.new_zeros(1, dtype=torch.int64) for _ in range(ranks)]
    dist.all_gather(counts, torch.tensor([len(t)], device=t.device), group=group)
    longest = max(int(one) for one in counts)
    padded = torch.cat([t, t.new_zeros(longest - len(t), *t.shape[1:])])
    pieces = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(pieces, padded, group=group)
    return torch.cat([piece[: int(n)] for piece, n in zip(pieces, counts, strict=True)])
