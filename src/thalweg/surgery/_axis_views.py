"""What reshaping, slicing and joining do to axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from thalweg.surgery._axes import Atom, Terms, cut, divide, fresh, joined, leaves, size, under
from thalweg.surgery._axis_trace import Layout, Trace, rule


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten", "flatten")
def view(t: Trace, made: Tensor, x: Tensor, *rest: Any, **options: Any) -> None:
    waiting = [atom for axis in t.layout(x) for atom in axis][::-1]
    layout: Layout = []
    for count in made.shape:
        axis: Terms = []
        while count > 1 and waiting:
            atom, *others = leaves([waiting.pop()])
            waiting += others[::-1]
            if count % atom.size == 0:
                axis.append(atom)
                count //= atom.size
            elif atom.size % count == 0:
                waiting += divide(atom, count, t.why)[::-1]
            else:
                break
        if count != 1:
            t.unknown(x, made)
            return
        layout.append(axis)
    t.place(made, layout, x)


@rule("permute")
def permute(t: Trace, made: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    t.place(made, [t.layout(x)[d] for d in dims], x)


@rule("t", "t_", "numpy_T", "transpose", "transpose_")
def transpose(t: Trace, made: Tensor, x: Tensor, one: int = 0, other: int = 1) -> None:
    layout = list(t.layout(x))
    if x.dim() > 1:
        layout[one], layout[other] = layout[other], layout[one]
    t.place(made, layout, x)


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(t: Trace, made: Tensor, x: Tensor, dim: int) -> None:
    layout = list(t.layout(x))
    layout.insert(dim % made.dim(), [])
    t.place(made, layout, x)


@rule("squeeze", "squeeze_")
def squeeze(t: Trace, made: Tensor, x: Tensor, dim: Any = None) -> None:
    layout = t.layout(x)  # of before, also where it was done in place
    dims = range(len(layout)) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % len(layout) for d in dims if size(layout[d]) == 1} if layout else set()
    t.place(made, [axis for d, axis in enumerate(layout) if d not in gone], x)


@rule("expand")
def expand(t: Trace, made: Tensor, x: Tensor, *rest: Any, **options: Any) -> None:
    new = made.dim() - x.dim()
    layout = [fresh(n) for n in made.shape[:new]]
    for axis, had, has in zip(t.layout(x), x.shape, made.shape[new:], strict=True):
        layout.append(axis if had == has else fresh(has))
    t.place(made, layout, x)


@rule("repeat")
def repeat(t: Trace, made: Tensor, x: Tensor, times: Sequence[int]) -> None:
    new = made.dim() - x.dim()
    layout = [fresh(n) for n in times[:new]]
    layout += [[*fresh(n), *axis] for n, axis in zip(times[new:], t.layout(x), strict=True)]
    t.place(made, layout, x)


def _at(layout: Layout, dim: int, rest: Terms | None, index: Atom, place: int) -> Layout:
    """The layout under one index of ``index``, which leads axis ``dim``; ``rest`` is what stays of it."""
    axes = [*layout[:dim], *([] if rest is None else [rest]), *layout[dim + 1 :]]
    return [under(axis, index, place) for axis in axes]


@rule("select")
def select(t: Trace, made: Tensor, x: Tensor, dim: int, place: int) -> None:
    layout, dim = t.layout(x), dim % x.dim()
    axis = leaves(layout[dim])
    t.fix(axis)
    if len(axis) == 1:
        t.place(made, _at(layout, dim, None, axis[0], place % x.shape[dim]), x)
    else:
        t.place(made, layout[:dim] + layout[dim + 1 :], x)


@rule("unbind")
def unbind(t: Trace, made: Sequence[Tensor], x: Tensor, dim: int = 0) -> None:
    for place, tensor in enumerate(made):
        select(t, tensor, x, dim, place)


def _runs(t: Trace, x: Tensor, dim: int, sizes: Sequence[int]) -> list[Layout]:
    """Layouts of neighbouring pieces of ``x`` along ``dim``."""
    layout = t.layout(x)
    lead, *rest = leaves(layout[dim]) or [Atom(1)]
    if rest and lead.split and set(sizes) == {size(rest)}:
        t.fix([lead])
        return [_at(layout, dim, rest, lead, place) for place in range(len(sizes))]
    return [[*layout[:dim], part, *layout[dim + 1 :]] for part in cut(layout[dim], sizes, t.why)]


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk")
def split(t: Trace, made: Sequence[Tensor], x: Tensor, how: Any, dim: int = 0) -> None:
    dim %= x.dim()
    layouts = _runs(t, x, dim, [tensor.shape[dim] for tensor in made])
    for tensor, layout in zip(made, layouts, strict=True):
        t.place(tensor, layout, x)


@rule("slice")
def slice_(
    t: Trace, made: Tensor, x: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> None:
    dim %= x.dim()
    has, gets = x.shape[dim], made.shape[dim]
    first = min(max((start or 0) + (has if (start or 0) < 0 else 0), 0), has)
    layout = list(t.layout(x))
    if step == 1 and 0 < gets < has:
        block = size(leaves(layout[dim])[1:])
        if gets == block and first % block == 0 and has % block == 0:
            t.place(made, _runs(t, x, dim, [block] * (has // block))[first // block], x)
            return
        sizes = [n for n in (first, gets, has - first - gets) if n]
        t.place(made, _runs(t, x, dim, sizes)[1 if first else 0], x)
    elif gets == has:
        t.place(made, layout, x)
    elif has % step == 0 and gets == has // step and first < step:
        # Every step-th: the inner index of (has / step, step).
        inner = fresh(step, t.why)
        inner[0].split = True
        outer = fresh(gets)
        t.tie(layout[dim], [*outer, *inner])
        layout[dim] = outer
        t.place(made, [under(axis, inner[0], first) for axis in layout], x)
    else:
        t.fix(layout[dim])
        layout[dim] = t.ordered(gets)
        t.place(made, layout, x)


@rule("cat")
def cat(t: Trace, made: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    dim %= made.dim()
    layouts = [t.layout(tensor) for tensor in tensors if tensor.dim() == made.dim()]
    sizes = [tensor.shape[dim] for tensor in tensors if tensor.dim() == made.dim()]
    for other in layouts[1:]:
        for d, axis in enumerate(other):
            if d != dim:
                t.tie(layouts[0][d], axis)
    whole = joined([layout[dim] for layout in layouts], sizes)
    t.place(made, [*layouts[0][:dim], whole, *layouts[0][dim + 1 :]])


@rule("stack")
def stack(t: Trace, made: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    index = Atom(len(tensors), t.why, split=True)
    layout: Layout = []
    for axes in zip(*(t.layout(tensor) for tensor in tensors), strict=True):
        rows = [leaves(axis) for axis in axes]
        if all(row == rows[0] for row in rows):
            layout.append(rows[0])
        elif len({tuple(atom.size for atom in row) for row in rows}) == 1:
            layout.append([_family(index, column) for column in zip(*rows, strict=True)])
        else:
            for row in rows[1:]:
                t.tie(rows[0], row)
            layout.append(rows[0])
    index.split = any(atom.members for axis in layout for atom in axis)
    layout.insert(dim % made.dim(), [index] if index.size > 1 else [])
    t.place(made, layout)


def _family(index: Atom, column: Sequence[Atom]) -> Atom:
    whole = Atom(column[0].size, split=True)
    whole.members = {(index, place): atom for place, atom in enumerate(column)}
    return whole


@rule("constant_pad_nd")
def pad(t: Trace, made: Tensor, x: Tensor, around: Sequence[int], *rest: Any) -> None:
    layout = list(t.layout(x))
    for back in range(len(around) // 2):
        low, high = around[2 * back], around[2 * back + 1]
        axis = layout[-1 - back]
        if min(low, high) < 0:
            t.fix(axis)
            layout[-1 - back] = t.ordered(made.shape[-1 - back])
        elif low or high:
            sizes = (low, x.shape[-1 - back], high)
            layout[-1 - back] = joined([fresh(low), axis, fresh(high)], sizes)
    t.place(made, layout)


@rule("pixel_shuffle")
def pixel_shuffle(t: Trace, made: Tensor, x: Tensor, factor: int) -> None:
    layout = t.layout(x)
    channels = fresh(made.shape[-3])
    t.tie(layout[-3], [*channels, *t.ordered(factor), *t.ordered(factor)])
    t.fix(*layout[-2:])
    t.place(made, [*layout[:-3], channels, *(t.ordered(n) for n in made.shape[-2:])])


@rule("channel_shuffle")
def channel_shuffle(t: Trace, made: Tensor, x: Tensor, groups: int) -> None:
    layout = list(t.layout(x))
    group, inner = fresh(groups), fresh(x.shape[1] // groups)
    t.tie(layout[1], [*group, *inner])
    layout[1] = [*inner, *group]
    t.place(made, layout)
