"""Operations that read or write at places along an axis, which has an order by that; the other axes pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from thalweg.surgery._axis_trace import Layout, Trace, rule


def _used(places: Sequence[Tensor | None]) -> tuple[int, int, Tensor]:
    """The one index that is given: the first axis that it is for, how many it is for, and itself."""
    ((dim, at),) = [(d, at) for d, at in enumerate(places) if at is not None]
    mask = at.dtype is torch.bool
    if not mask and at.dtype.itemsize < 4:
        raise ValueError("bytes may be a mask or places")
    return dim, at.dim() if mask else 1, at


@rule("index")
def index(t: Trace, made: Tensor, x: Tensor, places: Sequence[Tensor | None]) -> None:
    dim, count, at = _used(places)
    layout = t.layout(x)
    t.fix(*layout[dim : dim + count])
    chosen = [t.ordered(made.shape[dim])] if at.dtype is torch.bool else t.layout(at)
    t.place(made, [*layout[:dim], *chosen, *layout[dim + count :]])


@rule("index_put", "index_put_")
def index_put(
    t: Trace, made: Tensor, x: Tensor, places: Sequence[Tensor | None], values: Tensor, *rest: Any, **how: Any
) -> None:
    dim, count, at = _used(places)
    layout, given = t.layout(x), t.layout(values)
    chosen: Layout = [[]] * (1 if at.dtype is torch.bool else at.dim())
    expected = [*layout[:dim], *chosen, *layout[dim + count :]]
    sizes = [*x.shape[:dim], *[0] * len(chosen), *x.shape[dim + count :]]
    if len(given) > len(expected):
        raise ValueError("values have leading axes of their own")
    t.fix(*layout[dim : dim + count])
    for back in range(1, len(given) + 1):
        if values.shape[-back] == sizes[-back]:
            t.tie(expected[-back], given[-back])
        else:
            t.fix(given[-back])  # along the places, or one for all
    t.place(made, layout)


@rule("index_select")
def index_select(t: Trace, made: Tensor, x: Tensor, dim: int, places: Tensor) -> None:
    layout = list(t.layout(x))
    t.fix(layout[dim])
    layout[dim] = t.ordered(made.shape[dim])
    t.place(made, layout)


@rule("index_add", "index_add_", "index_copy", "index_copy_")
def into_places(
    t: Trace, made: Tensor, x: Tensor, dim: int, places: Tensor, source: Tensor, **options: Any
) -> None:
    """Entries of ``source`` go to places along one axis, which thereby has an order; the others pass."""
    into, of = t.layout(x), t.layout(source)
    t.fix(into[dim], of[dim])
    for d in range(len(into)):
        if d != dim % len(into):
            t.tie(into[d], of[d])
    t.place(made, into)


@rule("scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(
    t: Trace, made: Tensor, x: Tensor, dim: int, places: Tensor, source: Tensor, *rest: Any, **options: Any
) -> None:
    _same_places(dim, places, x, source)
    into_places(t, made, x, dim, places, source)


@rule("gather")
def gather(t: Trace, made: Tensor, x: Tensor, dim: int, places: Tensor, **options: Any) -> None:
    _same_places(dim, places, x, made)
    layout = list(t.layout(x))
    t.fix(layout[dim])
    layout[dim] = t.ordered(made.shape[dim])
    t.place(made, layout)


def _same_places(dim: int, places: Tensor, *others: Tensor) -> None:
    """Refuse places that may differ along an axis but ``dim``: they are expanded, and reach all of it."""
    for d in range(places.dim()):
        if d == dim % places.dim() or places.shape[d] == 1 == others[0].shape[d]:
            continue
        if places.stride(d) or any(places.shape[d] != one.shape[d] for one in others):
            raise ValueError(f"places must be the same along axis {d}")
