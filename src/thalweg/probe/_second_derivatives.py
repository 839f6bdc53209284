"""Functions of which torch has no second derivative, or a wrong one, by formulas of others that have one."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from thalweg.probe._graphs import children_first


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # torch's own double backward takes the norm of v for a constant.
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    result = functional.relu6(input + 3) / 6
    return input.copy_(result) if inplace else result


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    # Also where the model has chosen a kernel by itself.
    with sdpa_kernel(SDPBackend.MATH):
        return functional.scaled_dot_product_attention(*args, **kwargs)


_FORMULAS: dict[Any, Callable[..., Tensor]] = {
    torch._weight_norm: _weight_norm,
    functional.scaled_dot_product_attention: _attention,
    functional.hardsigmoid: _hardsigmoid,
    torch._C._nn.hardsigmoid: _hardsigmoid,
    torch._C._nn.hardsigmoid_: lambda input: _hardsigmoid(input, inplace=True),
}


@contextmanager
def named_where_missing() -> Iterator[None]:
    """What has no second derivative at all is said by its name.

    Raises:
        ValueError: there is such a function.
    """
    try:
        yield
    except RuntimeError as error:
        words = str(error)
        if missing := re.search(r"derivative for (\S+) is not implemented", words):
            what = missing[1].removesuffix("_backward")
            raise ValueError(f"loss_fn must have second derivatives, and {what} in it has none") from error
        raise


@contextmanager
def differentiable_again(name: str, computed: Tensor) -> Iterator[None]:
    """Within this ``computed`` is differentiated, and refused if a hand-written function ends its graph.

    Autograd would take what such a function gives, marked ``@once_differentiable`` or computed without
    gradients, for a constant, and its curvature for zero.

    Raises:
        ValueError: there is such a function; ``name`` is the argument that computed it.
    """
    nodes: Sequence[Any] = () if computed.grad_fn is None else children_first(computed.grad_fn)
    ends: list[str] = []
    handles = [
        node.register_hook(partial(_note_end, type(node).__name__, ends))
        for node in nodes
        if isinstance(node, torch.autograd.function.BackwardCFunction)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if ends:
        what = ends[0].removesuffix("Backward")
        raise ValueError(
            f"{name} must have second derivatives, and the torch.autograd.Function {what} in it has none: "
            "its backward is @once_differentiable, or computes without gradients"
        )


def _note_end(name: str, ends: list[str], inward: tuple[Any, ...], outward: tuple[Any, ...]) -> None:
    """Note a function whose gradient has no graph although it is made of what has one."""
    given = [g for g in inward if isinstance(g, Tensor)]
    # @once_differentiable puts an Error in the place of the graph.
    goes_on = any(g.requires_grad and type(g.grad_fn).__name__ != "Error" for g in given)
    if given and not goes_on and any(isinstance(g, Tensor) and g.requires_grad for g in outward):
        ends.append(name)


class Formulas(TorchFunctionMode):
    """Computes these functions by their formulas: the same values, with the right second derivatives."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _FORMULAS.get(func, func)(*args, **(kwargs or {}))
