"""What single operations of a symbolic trace do to the units that pass through them."""

from __future__ import annotations

import torch
from torch import fx, nn

# Each of these treats every unit alone.
UNITWISE_METHODS = {"contiguous", "relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}


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
