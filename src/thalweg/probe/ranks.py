"""Curvature of the whole batch when every rank of a data-parallel job holds a part of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed
from torch import Tensor

from thalweg.probe._wrapped import on_every_rank
from thalweg.probe.cost import costs
from thalweg.probe.operator import CurvatureOperator

__all__ = ["averaged_over_ranks"]


def over_group(
    make: Callable[[], CurvatureOperator], params: Sequence[Tensor], group: Any
) -> CurvatureOperator:
    """What ``make`` gives, over a group the :func:`averaged_over_ranks` of what it gives on each."""
    operator = on_every_rank(make, group, params[0].device, "loss_fn")
    return operator if group is None else averaged_over_ranks(operator, group)


@costs(0, 0, memory="none; one all-reduce of all parameters a product")
def averaged_over_ranks(operator: CurvatureOperator, group: Any = None) -> CurvatureOperator:
    """The mean of the ranks' operators: that of the mean loss, if their batches are of equal size.

    Every rank of the group has to make the same calls with the same vectors; the probes do, since they draw
    theirs from a private generator with a fixed seed. Works for a model under DistributedDataParallel as for
    a plain one, because products never run its backward hooks.

    Args:
        operator: this rank's, of a replicated model.
        group: a process group; None for the default one.

    Raises:
        ValueError: torch.distributed is not initialised.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        raise ValueError("operator can be averaged only after torch.distributed.init_process_group")
    ranks = torch.distributed.get_world_size(group)

    def matvec(vector: Tensor) -> Tensor:
        product = operator.matvec(vector).contiguous()
        torch.distributed.all_reduce(product, group=group)
        return product.div_(ranks)

    return operator._replace(matvec=matvec)
