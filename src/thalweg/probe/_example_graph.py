"""Where examples meet parameters: the autograd graph of a batch, read beside that of a batch of two.

What grows with the number of examples carries an example's identity; what does not was computed from the
parameters alone. The gradient that arrives at the border between the two still belongs to single examples.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from thalweg.probe._graphs import Node, children_first

# What may give examples other places, by the saved tensor that says along which dimensions; None: any.
MOVES = {
    "CatBackward0": "dim",
    "FlipBackward0": "dims",
    "GatherBackward0": "dim",
    "IndexAddBackward0": "dim",
    "IndexBackward0": None,
    "IndexCopyBackward0": "dim",
    "IndexPutBackward0": None,
    "IndexSelectBackward0": "dim",
    "MaskedScatterBackward0": None,
    "MaskedSelectBackward0": None,
    "PackPaddedSequenceBackward0": None,
    "RollBackward0": "dims",
    "ScatterAddBackward0": "dim",
    "ScatterBackward0": "dim",
    "ScatterBackward1": "dim",
    "SliceScatterBackward0": "dim",
    "SortBackward0": "dim",
    "TakeBackward0": None,
}


class GraphsDiffer(Exception):
    """The model does not compute the same things for another number of examples."""


@dataclass(frozen=True)
class Dim:
    """The dimension of a tensor that counts examples, ``times`` entries an example."""

    at: int
    times: int


@dataclass(frozen=True)
class Border:
    """An input of an operation on examples that was computed from parameters alone.

    Attributes:
        node, slot: the operation, and which of its inputs.
        source, output: the node that computed that input, and which output of it.
        targets: indices of the parameters that it was computed from.
    """

    node: Node
    slot: int
    source: Node
    output: int
    targets: frozenset[int]


class Graph:
    """The borders of one backward graph.

    Args:
        losses: of the batch, (B,).
        few: losses of a batch of another size, computed in the same way.
        params: the parameters that count.
        known: names of the operations whose gradients can be used.

    Attributes:
        borders: all of them.
        sources: known operations at a border, below which there is none.
        targets: node to the parameters that it was computed from; None if examples had a part in it.
        parents: node to the nodes that lead to it.
        moved: whether some operation may have given the examples other places than they have in the batch.

    Raises:
        GraphsDiffer: the two graphs are not alike.
    """

    def __init__(self, losses: Tensor, few: Tensor, params: list[Tensor], known: Container[str]) -> None:
        self.examples, self.few = len(losses), len(few)
        self.twin = _twins(losses.grad_fn, few.grad_fn)
        index = {id(p): position for position, p in enumerate(params)}
        self.targets: dict[Node, frozenset[int] | None] = {}
        below: dict[Node, bool] = {}
        self.borders: list[Border] = []
        self.parents: dict[Node, list[Node]] = {node: [] for node in self.twin}
        self.sources: list[Node] = []
        self.moved = False
        for node in children_first(losses.grad_fn):
            children = [child for child, _ in node.next_functions if child is not None]
            for child in children:
                self.parents[child].append(node)
            self.targets[node] = self._computed_from(node, index)
            if self.targets[node] is not None:
                below[node] = False
                continue
            self.moved |= self._moves(node)
            mine = [
                Border(node, slot, child, output, self.targets[child])  # type: ignore[arg-type]
                for slot, (child, output) in enumerate(node.next_functions)
                if child is not None and self.targets[child]
            ]
            self.borders += mine
            deeper = any(below[child] for child in children)
            useful = bool(mine) and node.name() in known
            below[node] = useful or deeper
            if useful and not deeper:
                # The engine must be asked for something there, or it would stop above.
                self.sources.append(node)

    def _computed_from(self, node: Node, index: dict[int, int]) -> frozenset[int] | None:
        """Parameters that ``node`` was computed from, or None if examples had a part in it."""
        if not all(self.shape(node, k) == self.shape(node, k, few=True) for k in range(_outputs(node))):
            return None
        if hasattr(node, "variable"):
            found = index.get(id(node.variable))
            return frozenset() if found is None else frozenset([found])
        children = [self.targets[child] for child, _ in node.next_functions if child is not None]
        if None in children:
            return None
        return frozenset().union(*children)  # type: ignore[arg-type]

    def _moves(self, node: Node) -> bool:
        if node.name() not in MOVES:
            return isinstance(node, BackwardCFunction)  # somebody's own operation
        dim = self.dim(self.shape(node), self.shape(node, few=True))
        if dim is None:
            return True
        if node.name() == "IndexBackward0" and dim.times == 1:
            # Each example's own entry, such as x[arange, lengths], moves none.
            index = node._saved_indices[0] if dim.at == 0 else None
            return index is None or not torch.equal(
                index.flatten(), torch.arange(self.examples, device=index.device)
            )
        saved = MOVES[node.name()]
        given = getattr(node, f"_saved_{saved}") if saved else ()
        # Negative dimensions are saved as unsigned numbers.
        along = [d - 2**64 if d >= 2**63 else d for d in (given if isinstance(given, tuple) else (given,))]
        return not along or dim.at in [d % len(self.shape(node)) for d in along]

    def shape(self, node: Node, output: int = 0, few: bool = False) -> tuple[int, ...]:
        """Of an output of ``node``, in this graph or in that of few examples."""
        return tuple((self.twin[node] if few else node)._input_metadata[output].shape)

    def dim(self, shape: tuple[int, ...], few: tuple[int, ...]) -> Dim | None:
        """Which dimension counts examples, by the shape here and with few; None if that is not clear."""
        if len(shape) != len(few):
            return None
        changed = [at for at, (a, b) in enumerate(zip(shape, few, strict=True)) if a != b]
        if len(changed) != 1:
            return None
        at = changed[0]
        times, rest = divmod(shape[at], self.examples)
        return Dim(at, times) if not rest and times * self.few == few[at] else None


def by_example(t: Tensor, dim: Dim) -> Tensor:
    """The same entries as (B, ...); several an example are taken to lie together."""
    if dim.times == 1:
        return t.movedim(dim.at, 0)
    return t.unflatten(dim.at, (-1, dim.times)).movedim(dim.at, 0)


def types_in(losses: Tensor) -> set[torch.dtype]:
    """Floating types of everything that the losses were computed from by operations with a gradient."""
    nodes = children_first(losses.grad_fn)
    types = {one.dtype for node in nodes for one in node._input_metadata}
    return {dtype for dtype in types if dtype.is_floating_point} | {losses.dtype}


def _outputs(node: Node) -> int:
    return len(node._input_metadata)


def _twins(root: Node, other: Node) -> dict[Node, Node]:
    """Node to the node in the same place of the other graph."""
    found = {root: other}
    waiting = [root]
    while waiting:
        node = waiting.pop()
        twin = found[node]
        if node.name() != twin.name() or len(node.next_functions) != len(twin.next_functions):
            raise GraphsDiffer
        for (child, output), (its, its_output) in zip(node.next_functions, twin.next_functions, strict=True):
            if (child is None) != (its is None) or output != its_output:
                raise GraphsDiffer
            if child is None:
                continue
            if child not in found:
                found[child] = its
                waiting.append(child)
            elif found[child] is not its:
                raise GraphsDiffer
    return found
