"""Operations that know first from last along an axis, and what they leave of the others."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thalweg.surgery._axes import size
from thalweg.surgery._axis_trace import Trace, rule


@rule("cumsum", "cumprod", "sort", "topk", "max", "min", "argmax", "argmin")
def along(t: Trace, made: Any, x: Tensor, *rest: Any, dim: Any = None, **options: Any) -> None:
    """One axis has an order; the others pass."""
    if t.op == "topk":
        rest = rest[1:]
    dim = rest[0] if rest else dim
    known = isinstance(dim, int) and not isinstance(dim, bool)
    _ordered(t, made, x, {dim % x.dim()} if known and x.dim() else set(range(x.dim())))


@rule("flip")
def flip(t: Trace, made: Tensor, x: Tensor, dims: Any) -> None:
    _ordered(t, made, x, {d % x.dim() for d in dims})


@rule("roll")
def roll(t: Trace, made: Tensor, x: Tensor, shifts: Any, dims: Any = ()) -> None:
    chosen = [dims] if isinstance(dims, int) else dims
    _ordered(t, made, x, {d % x.dim() for d in chosen} or set(range(x.dim())))


@rule("tril", "triu")
def triangle(t: Trace, made: Tensor, x: Tensor, *rest: Any) -> None:
    _ordered(t, made, x, {x.dim() - 2, x.dim() - 1})


def _ordered(t: Trace, made: Any, x: Tensor, dims: set[int]) -> None:
    layout = t.layout(x)
    t.fix(*(layout[d] for d in dims))
    for tensor in made if isinstance(made, tuple) else (made,):
        if tensor.dim() == x.dim():
            axes = [t.ordered(n) if d in dims else layout[d] for d, n in enumerate(tensor.shape)]
        else:
            axes = [axis for d, axis in enumerate(layout) if d not in dims]
        same = [size(axis) for axis in axes] == list(tensor.shape)
        t.place(tensor, axes if same else [t.ordered(n) for n in tensor.shape])


@rule("as_strided_")
def restride(t: Trace, made: Tensor, x: Tensor, *rest: Any) -> None:
    """Pooling sets strides of axes of one entry, to remember a memory format; anything else is not known."""
    layout, expected = t.layout(x), 1
    fits = [size(axis) for axis in layout] == list(made.shape)
    for n, stride in zip(reversed(made.shape), reversed(made.stride()), strict=True):
        fits = fits and (n == 1 or stride == expected)
        expected *= n
    if not fits:
        t.unknown(x, made)
