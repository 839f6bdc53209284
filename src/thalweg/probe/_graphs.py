"""Walking an autograd graph, and refusing one that hides parameters from a gradient."""

from __future__ import annotations

from typing import Any

from torch import Tensor

Node = Any  # torch.autograd.graph.Node, whose saved tensors and metadata torch does not type


def children_first(root: Node) -> list[Node]:
    """Every node once, after all those that it leads to."""
    order: list[Node] = []
    seen = {root}
    stack = [(root, iter(root.next_functions))]
    while stack:
        node, children = stack[-1]
        for child, _ in children:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            stack.pop()
            order.append(node)
    return order


def dense(gradient: Tensor) -> Tensor:
    """Of an embedding with ``sparse=True``, the gradient written out; any other as it is."""
    return gradient.to_dense() if gradient.is_sparse else gradient


def check_reachable(name: str, computed: Tensor) -> None:
    """Refuse what reentrant checkpointing computed: its parameters are in no graph and would count as unused.

    Raises:
        ValueError: there is such a part; ``name`` is the argument that computed it.
    """
    nodes = () if computed.grad_fn is None else children_first(computed.grad_fn)
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes):
        raise ValueError(
            f"{name} must not run activation checkpointing with use_reentrant=True, which hides parameters "
            "from the gradient of chosen tensors; use_reentrant=False works (transformers: "
            'gradient_checkpointing_enable({"use_reentrant": False}))'
        )
