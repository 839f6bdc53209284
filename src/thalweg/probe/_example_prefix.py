"""From a tensor computed from parameters alone back to the parameter: transposes, casts, anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from thalweg.probe._example_forms import Dense, Form, Outer, Pulled
from thalweg.probe._example_graph import Border
from thalweg.probe._example_shared import Rows


def carried(border: Border, form: Form, param: Tensor, shape: Sequence[int]) -> Form:
    """The form at the border as one of ``param``; in its own kind where the way there is short."""
    node, turned = border.source, False
    while True:
        if hasattr(node, "variable"):
            return _turned(form, shape) if turned else form
        name = node.name()
        children = [child for child, _ in node.next_functions]
        if name == "EmbeddingBackward0" and isinstance(form, Dense) and not turned:
            found = _looked_up(node, form)
            if found is not None:
                return found
        if len(children) != 1 or name not in ("TBackward0", "ToCopyBackward0"):
            break
        turned ^= name == "TBackward0"
        if turned and len(form.shape) != 2:
            break
        node = children[0]

    edge = GradientEdge(border.source, border.output)
    dtype = border.source._input_metadata[border.output].dtype

    def pull(grads: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            [edge], [param], grad_outputs=[grads.to(dtype)], is_grads_batched=True, retain_graph=True
        )
        return found

    return Pulled(form, shape, pull)


def _turned(form: Form, shape: Sequence[int]) -> Form:
    if isinstance(form, Outer) and form.groups == 1:

        def factors(part: slice) -> tuple[Tensor, Tensor]:
            left, right = form.factors(part)
            return right, left

        return Outer(form.examples, (1, form.positions, form.q, form.p), shape, factors, form.lazy)
    return Pulled(form, shape, lambda grads: grads.mT)


def _looked_up(node: torch.autograd.graph.Node, form: Dense) -> Form | None:
    """Of a table, from gradients of what was looked up in it at places that all examples share."""
    (child, _), *_ = node.next_functions
    if not hasattr(child, "variable") or node._saved_scale_grad_by_freq:  # type: ignore[attr-defined]
        return None
    index = node._saved_indices.flatten().expand(form.examples, -1)  # type: ignore[attr-defined]
    values = form.values.reshape(*index.shape, -1)
    size = node._saved_weight_sym_argsize_0  # type: ignore[attr-defined]
    return Rows(index, values, size, node._saved_padding_idx)  # type: ignore[attr-defined]
