"""What each operation says about the axes of the tensors that it reads and makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# These register their rules.
from thalweg.surgery import _axis_order, _axis_places, _axis_views, _axis_weights  # noqa: F401
from thalweg.surgery._axes import Atom, Terms
from thalweg.surgery._axis_trace import RULES, Trace

UNIFORM = {
    "empty",
    "empty_like",
    "full",
    "full_like",
    "new_empty",
    "new_full",
    "new_ones",
    "new_zeros",
    "ones",
    "ones_like",
    "scalar_tensor",
    "zeros",
    "zeros_like",
}
# Entry by entry, though not all are tagged so.
SAME = {
    "_prelu_kernel",
    "_to_copy",
    "alias",
    "clone",
    "contiguous",
    "copy_",
    "detach",
    "lift_fresh",
    "masked_fill",
}
SPATIAL = {
    "_adaptive_avg_pool2d": 2,
    "_adaptive_avg_pool3d": 3,
    "adaptive_max_pool2d": 2,
    "adaptive_max_pool3d": 3,
    "avg_pool1d": 1,
    "avg_pool2d": 2,
    "avg_pool3d": 3,
    "max_pool2d_with_indices": 2,
    "max_pool3d_with_indices": 3,
    "reflection_pad1d": 1,
    "reflection_pad2d": 2,
    "replication_pad1d": 1,
    "replication_pad2d": 2,
    "upsample_bicubic2d": 2,
    "upsample_bilinear2d": 2,
    "upsample_linear1d": 1,
    "upsample_nearest1d": 1,
    "upsample_nearest2d": 2,
    "upsample_nearest3d": 3,
    "upsample_trilinear3d": 3,
}
REDUCTIONS = {
    "all",
    "amax",
    "amin",
    "any",
    "linalg_vector_norm",
    "logsumexp",
    "mean",
    "norm",
    "prod",
    "std",
    "std_mean",
    "sum",
    "var",
    "var_mean",
}


def follow(t: Trace, func: Any, args: tuple, kwargs: dict, made: Any) -> None:
    """Tell the trace what ``made = func(*args, **kwargs)`` says about axes."""
    name = t.op
    if name in RULES:
        try:
            RULES[name](t, made, *args, **kwargs)
        except (TypeError, ValueError, IndexError, AttributeError):
            t.unknown((args, kwargs), made)  # another form of the operation than the rule is for
    elif name in SAME or (torch.Tag.pointwise in func.tags and isinstance(made, Tensor)):
        pointwise(t, made, args, kwargs)
    elif name in SPATIAL:
        spatial(t, made, args[0], SPATIAL[name])
    elif name in REDUCTIONS:
        reduction(t, made, func, args, kwargs)
    elif name in UNIFORM:
        t.place(made, [[Atom(n, split=True)] if n > 1 else [] for n in made.shape])
    else:
        t.unknown((args, kwargs), made)
    _noted(t, (args, kwargs), made)


def _noted(t: Trace, arguments: Any, made: Any) -> None:
    """An operation reads all of its arguments, unless it only gives a weight another shape."""
    results = [made] if isinstance(made, Tensor) else tree_leaves(made)
    if any(id(tensor) in t.of_weights for tensor in results):
        return
    for tensor in tree_leaves(arguments):
        if isinstance(tensor, Tensor) and (layout := t.layouts.get(id(tensor))) is not None:
            t.read[id(layout)] = layout


def pointwise(t: Trace, made: Tensor, *arguments: Any) -> None:
    """Operands with one size along an axis have one order there."""
    operands = [tensor for tensor in tree_leaves(arguments) if isinstance(tensor, Tensor)]
    axes: list[Terms | None] = [None] * made.dim()
    for tensor in operands:
        layout = t.layout(tensor)
        for back in range(1, min(tensor.dim(), made.dim()) + 1):
            if tensor.shape[-back] != made.shape[-back]:
                continue
            known = axes[-back]
            if known is None:
                axes[-back] = layout[-back]
            else:
                t.tie(known, layout[-back])
    if not t.known(made):
        t.place(made, [axis or [] for axis in axes], operands[0] if len(operands) == 1 else None)


def spatial(t: Trace, made: Any, x: Tensor, dims: int) -> None:
    layout = t.layout(x)
    t.fix(*layout[-dims:])
    for tensor in made if isinstance(made, tuple) else (made,):
        t.place(tensor, layout[:-dims] + [t.ordered(n) for n in tensor.shape[-dims:]])


def reduction(t: Trace, made: Any, func: Any, args: tuple, kwargs: dict) -> None:
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    x, dim = args[0], named.get("dim")
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    gone = {d % max(x.dim(), 1) for d in dims}
    layout = t.layout(x)
    kept = [[] if d in gone else axis for d, axis in enumerate(layout)]
    if not named.get("keepdim", False):
        kept = [axis for d, axis in enumerate(layout) if d not in gone]
    for tensor in made if isinstance(made, tuple) else (made,):
        t.place(tensor, kept)
