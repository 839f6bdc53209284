"""What products with weights and with one another, and normalisations, say about axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from thalweg.surgery._axes import cut, fresh, size
from thalweg.surgery._axis_trace import Sight, Trace, rule


def contracted(t: Trace, made: Tensor, left: Tensor, right: Tensor, operands: tuple[int, int]) -> None:
    """``left @ right`` of matrices, or of stacks of matrices."""
    a, b = t.layout(left), t.layout(right)
    t.tie(a[-1], b[-2])
    for axis, same in zip(a[:-2], b[:-2], strict=True):
        t.tie(axis, same)
    layout = [*a[:-1], b[-1]]
    t.place(made, layout)
    for tensor, operand, other in ((left, operands[0], right), (right, operands[1], left)):
        if id(other) in t.of_weights and id(tensor) not in t.of_weights:
            t.reads.append(Sight(t.calls, operand, t.layout(tensor)))
            t.writes.append(Sight(t.calls, None, layout))


@rule("mm", "bmm")
def product(t: Trace, made: Tensor, left: Tensor, right: Tensor) -> None:
    contracted(t, made, left, right, (0, 1))


@rule("addmm", "baddbmm")
def product_and_sum(t: Trace, made: Tensor, added: Tensor, left: Tensor, right: Tensor, **scale: Any) -> None:
    contracted(t, made, left, right, (1, 2))
    for axis, other in zip(t.layout(made)[::-1], t.layout(added)[::-1], strict=False):
        if size(axis) == size(other):
            t.tie(axis, other)


@rule("_grouped_mm")
def products_by_group(
    t: Trace, made: Tensor, left: Tensor, right: Tensor, *rest: Any, **options: Any
) -> None:
    """Neighbouring rows by one matrix of several, such as an expert's: all have one order of units."""
    a, b = t.layout(left), t.layout(right)
    if (len(a), len(b)) != (2, 3):
        raise ValueError("rows and a stack of matrices are understood")
    t.fix(a[0], b[0])
    t.tie(a[1], b[1])
    t.place(made, [a[0], b[2]])


@rule("mv")
def product_with_vector(t: Trace, made: Tensor, left: Tensor, right: Tensor) -> None:
    t.tie(t.layout(left)[1], t.layout(right)[0])
    t.place(made, t.layout(left)[:1])


@rule("dot")
def dot(t: Trace, made: Tensor, left: Tensor, right: Tensor) -> None:
    t.tie(t.layout(left)[0], t.layout(right)[0])
    t.place(made, [])


@rule("convolution")
def convolution(t: Trace, made: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> None:
    transposed, groups = rest[3], rest[5]
    inner, kernel = t.layout(x), t.layout(weight)
    t.fix(*inner[2:], *kernel[2:])
    # Rows of the weight go with the groups; its columns are those of one group.
    group = fresh(groups)
    rows = [*group, *fresh(weight.shape[0] // groups)]
    t.tie(kernel[0], rows)
    ends = [kernel[0], [*group, *kernel[1]]]
    reads, makes = ends if transposed else ends[::-1]
    t.tie(inner[1], reads)
    layout = [inner[0], makes, *(t.ordered(n) for n in made.shape[2:])]
    t.place(made, layout)
    if bias is not None:
        t.tie(t.layout(bias)[0], makes)
    if id(weight) in t.of_weights:
        t.reads.append(Sight(t.calls, 0, inner))
        t.writes.append(Sight(t.calls, None, layout))


@rule("embedding")
def embedding(t: Trace, made: Tensor, weight: Tensor, places: Tensor, *rest: Any, **options: Any) -> None:
    table = t.layout(weight)
    t.fix(table[0])
    t.place(made, [*t.layout(places), table[1]])
    t.writes.append(Sight(t.calls, None, t.layout(made)))


# Normalisations. What they sum over in passing is noted as if it had been made.


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
def batch_norm(t: Trace, made: tuple, x: Tensor, *rest: Any) -> None:
    layout = t.layout(x)
    for tensor in rest:
        if isinstance(tensor, Tensor):
            t.tie(layout[1], t.layout(tensor)[0])
    t.place(made[0], layout)
    for tensor in made[1:]:
        t.place(tensor, [layout[1]] if tensor.shape == x.shape[1:2] else [t.ordered(n) for n in tensor.shape])


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(t: Trace, made: Any, x: Tensor, shape: Sequence[int], *rest: Any) -> None:
    layout, count = t.layout(x), len(shape)
    for tensor in rest:
        if isinstance(tensor, Tensor):
            for one, other in zip(layout[-count:], t.layout(tensor), strict=True):
                t.tie(one, other)
    t.place(made[0], layout)
    for tensor in made[1:]:
        t.place(tensor, layout[:-count] + [[]] * count)


@rule("native_group_norm")
def group_norm(t: Trace, made: Any, x: Tensor, *rest: Any) -> None:
    layout, groups = t.layout(x), rest[5]
    group = fresh(groups)
    t.tie(layout[1], [*group, *fresh(x.shape[1] // groups)])
    for tensor in rest[:2]:
        if isinstance(tensor, Tensor):
            t.tie(layout[1], t.layout(tensor)[0])
    t.place(made[0], layout)
    for tensor in made[1:]:
        t.place(tensor, [layout[0], group])


@rule("_softmax", "_log_softmax", "_safe_softmax")
def softmax(t: Trace, made: Tensor, x: Tensor, dim: int, *rest: Any, **options: Any) -> None:
    layout = t.layout(x)
    t.place(made, layout)
    summed = [axis for d, axis in enumerate(layout) if d != dim % x.dim()]
    t.seen[id(summed)] = summed


@rule("glu")
def glu(t: Trace, made: Tensor, x: Tensor, dim: int = -1) -> None:
    layout = list(t.layout(x))
    half = made.shape[dim]
    one, other = cut(layout[dim], [half, half], t.why)
    t.tie(one, other)
    layout[dim] = one
    t.place(made, layout)
