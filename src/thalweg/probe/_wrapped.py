"""What is behind the wrappers of a model, and sums over processes that hold different data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from thalweg._core.not_finite import NotFiniteError

T = TypeVar("T")


def check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def bare(model: nn.Module) -> nn.Module:
    """The module behind DDP, DataParallel and torch.compile: its own names, and no broadcast in its forward.

    A forward of DDP itself waits for the other processes where there are buffers, so that a probe called by
    one process alone would hang.

    Raises:
        ValueError: it is no module.
    """
    check_module(model)
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def uncompiled() -> AbstractContextManager[Any]:
    """Whatever ``torch.compile`` made runs as the Python that it was made from."""
    # Where nothing was compiled the compiler is not loaded, and loading it takes seconds.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def one_state(model: nn.Module, group: Any) -> Iterator[None]:
    """Floating buffers as on the first process of ``group``; every process's own return afterwards.

    So DDP's own forward pass sees them. In between each process gathers running statistics from its data.
    """
    buffers = [b for b in bare(model).buffers() if b.is_floating_point() and b.numel()]
    if group is None or not buffers:
        yield
        return
    first = distributed.get_global_rank(group, 0)
    # Through aliases, for which no version counts: a graph that saved a buffer still stands.
    kept = [(b.data, b.detach().clone(memory_format=torch.contiguous_format)) for b in buffers]
    try:
        for alias, own in kept:
            theirs = own.clone()
            distributed.broadcast(theirs, first, group=group)
            alias.copy_(theirs)
        yield
    finally:
        for alias, own in kept:
            alias.copy_(own)


def on_every_rank(
    make: Callable[[], T], group: Any, where: torch.device | nn.Module, what: str = "model"
) -> T:
    """What ``make`` gives, if it does on every rank of ``group``; without a group, simply that.

    One whose own part of the batch is not finite, or brings no activation, would leave the others waiting.

    Args:
        make: exchanges nothing with other ranks.
        where: the device on which ranks talk, or the model that is on it.
        what: the argument that is to blame, for the error.

    Raises:
        ValueError: it failed on another rank; on that one, whatever it raised.
    """
    if group is None:
        return make()
    if isinstance(where, nn.Module):
        tensor = next((t for some in (where.parameters(), where.buffers()) for t in some), None)
        where = torch.device("cpu") if tensor is None else tensor.device
    failed = torch.zeros((), dtype=torch.int32, device=where)
    try:
        made = make()
    except Exception as error:
        failed.fill_(1 if isinstance(error, NotFiniteError) else 2)
        distributed.all_reduce(failed, distributed.ReduceOp.MAX, group=group)
        raise
    distributed.all_reduce(failed, distributed.ReduceOp.MAX, group=group)
    if failed.item():
        kind = NotFiniteError if failed.item() == 1 else ValueError
        raise kind(f"{what} must succeed on every rank of group, and failed on another")
    return made


def of_all_processes(found: dict[str, Tensor], group: Any, fill: float = 0.0) -> dict[str, Tensor]:
    """With what only other processes of ``group`` have, full of ``fill``: an expert may run in one alone.

    The order is the same in all of them, so that each can go on to :func:`over_processes`.
    """
    if group is None:
        return found
    each: list[Any] = [None] * distributed.get_world_size(group)
    own = {name: (tensor.shape, tensor.dtype, str(tensor.device.type)) for name, tensor in found.items()}
    distributed.all_gather_object(each, own, group=group)
    every = {name: kind for one in each for name, kind in one.items()}
    return {
        name: found[name] if name in found else torch.full(shape, fill, dtype=dtype, device=device)
        for name, (shape, dtype, device) in every.items()
    }


def over_processes(tensor: Tensor, group: Any, how: str = "sum") -> Tensor:
    """Sum, minimum or maximum of ``tensor`` over the processes of ``group``; itself where that is None."""
    if group is None:
        return tensor
    op = {"sum": distributed.ReduceOp.SUM, "min": distributed.ReduceOp.MIN, "max": distributed.ReduceOp.MAX}
    reduced = tensor.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(reduced, op[how], group=group)
    return reduced
