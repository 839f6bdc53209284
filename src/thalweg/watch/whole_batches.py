"""Batches of which no part is a batch: a graph, whose edges name its nodes by their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from thalweg._core.not_finite import NotFiniteError
from thalweg.watch.communication import CommunicationError
from thalweg.watch.moment import Moment, few

__all__ = ["part", "refuse_parts", "seen_whole", "why_whole"]

POINTS = (
    "this batch cannot be cut into examples: beside {} rows it holds {} whole numbers, which may point to "
    "some of them, as the edges of a graph do"
)
LAYOUT = "this batch cannot be cut into examples: it holds a tensor of layout {}"
FAILED = "this batch cannot be cut into examples: a part of it gave {}"
# Of which other examples are no cure.
OTHERS = (NotFiniteError, CommunicationError, torch.OutOfMemoryError)


def part(at: Moment, batch: Any, count: int) -> Any:
    """The first ``count`` examples; all of a batch that cannot be cut, see :func:`why_whole`."""
    return few(batch, count) if why_whole(at) is None else batch


def why_whole(at: Moment) -> str | None:
    """Why the batch at hand cannot be cut, in words; None if it can, as far as that is known.

    It cannot where a tensor is sparse or nested, or where whole numbers come in another number than examples,
    since they may point to some of them: to point outside of a part would end a process that computes on a
    GPU. Nor where a part has failed, see :func:`refuse_parts`.
    """
    if (why := at.memory.get("whole")) is not None:
        return why
    return seen_whole(at)


def seen_whole(at: Moment) -> str | None:
    """:func:`why_whole` as far as the batch itself tells."""
    each = (_why(_tensors(batch)) for batch in (at.inputs, at.batch))
    return next((why for why in each if why is not None), None)


def refuse_parts(at: Moment, error: Exception) -> bool:
    """Whether a sensor that failed is to try again with whole batches, of which it is given no more parts.

    It begins anew: what it has kept may belong to parts.
    """
    if isinstance(error, OTHERS) or isinstance(error.__cause__, OTHERS) or why_whole(at) is not None:
        return False
    cause = error.__cause__ or error
    words = " ".join(str(cause).split())
    at.memory.clear()
    at.memory["whole"] = FAILED.format(f"{type(cause).__name__}: {words[:120]}")
    return True


def _why(tensors: list[Tensor]) -> str | None:
    for t in tensors:
        if t.layout is not torch.strided or t.is_nested:
            return LAYOUT.format("nested" if t.is_nested else str(t.layout).removeprefix("torch."))
    first = next((t for t in tensors if t.ndim), None)
    for t in tensors:
        whole = t.ndim and not (t.is_floating_point() or t.is_complex() or t.dtype is torch.bool)
        if first is not None and whole and not _shared(t, first) and len(t) != len(first):
            return POINTS.format(len(first), " x ".join(map(str, t.shape)))
    return None


def _shared(t: Tensor, first: Tensor) -> bool:
    """Whether it is one row for all examples, or one number for each of their positions."""
    return len(t) == 1 or (t.ndim == 1 and first.ndim > 1 and len(t) == first.shape[1])


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if not isinstance(batch, Mapping | tuple | list):
        return []
    return [t for one in (batch.values() if isinstance(batch, Mapping) else batch) for t in _tensors(one)]
