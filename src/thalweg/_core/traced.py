"""A symbolic trace that units can be followed through, and what its single operations do to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

# Each of these treats every unit alone.
UNITWISE_METHODS = {"contiguous", "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}


class UnitTracer(fx.Tracer):
    """Looks inside of compiled modules, whose names then have their ``_orig_mod``.

    It stays outside of what is derived from a layer of torch, and of modules that say by an attribute
    ``unitwise`` whether they treat every unit alone and hold nothing of their own for each.
    """

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = hasattr(m, "unitwise") or isinstance(m, nn.Linear | _ConvNd | _BatchNorm)
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(inside := getattr(m, "_orig_mod", None), nn.Module):
            return inside(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


def reads_shape(node: fx.Node) -> bool:
    """Whether ``node`` asks for sizes and not for numbers."""
    if node.op == "call_method":
        return node.target in ("size", "dim")
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


def flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether ``node`` turns (batch, ...) into (batch, everything else)."""
    if isinstance(module, nn.Flatten):
        return bool(module.start_dim == 1 and module.end_dim == -1)
    if node.op == "call_method" and node.target in ("view", "reshape"):
        shape = node.args[1:] if len(node.args) > 2 else node.args[1]
        return isinstance(shape, tuple | list) and len(shape) == 2 and bool(shape[1] == -1)
    if (node.op == "call_method" and node.target == "flatten") or node.target is torch.flatten:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        return bool(start == 1) and bool(end == -1)
    return False
