"""Groups of units that can be put into another order, and the blocks of weights that carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Permutations = dict[int, Tensor]


@dataclass(frozen=True)
class Units:
    """Units that can be put into another order together, wherever they appear.

    Attributes:
        name: the first module whose weight carries them.
        size: how many there are.
        parent: index of units under each of which these may be in an order of their own, such as the heads
            of attention for what is inside a head; None for one order everywhere.
    """

    name: str
    size: int
    parent: int | None


@dataclass(frozen=True)
class Piece:
    """A block of one weight, whose axes are single groups of units.

    Attributes:
        name: of the weight or activation.
        index: which entries along each axis of the weight, in order: None for all, a slice of
            neighbours, or their places.
        shape: the block's.
        labels: for each of its axes the index of the units, or None for an axis that keeps its order.
        axes: for each of its axes the axis of the weight that it is part of.
    """

    name: str
    index: tuple[Tensor | slice | None, ...]
    shape: tuple[int, ...]
    labels: tuple[int | None, ...]
    axes: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """The block of ``tensor``, reshaped; a view where that can be."""
        for axis, index in enumerate(self.index):
            if isinstance(index, slice):
                tensor = tensor.narrow(axis, index.start, index.stop - index.start)
            elif index is not None:
                tensor = tensor.index_select(axis, index)
        return tensor.reshape(self.shape)

    def put(self, tensor: Tensor, block: Tensor) -> None:
        """Write the block back."""
        runs = [slice(None) if index is None else index for index in self.index]
        if all(isinstance(run, slice) for run in runs):
            place = tensor[tuple(runs)]
            place.copy_(block.reshape(place.shape))
            return
        places = [
            torch.arange(n)[run] if isinstance(run, slice) else run
            for n, run in zip(tensor.shape, runs, strict=True)
        ]
        tensor[torch.meshgrid(*places, indexing="ij")] = block.reshape([len(one) for one in places])


@dataclass(frozen=True)
class Symmetry:
    """All permutations of hidden units that leave a model's function as it is, as far as they are known.

    Attributes:
        units: the groups.
        pieces: blocks of weights and running statistics that carry at least one of them.
        fixed: weight and axis, as ``"name[axis]"``, to the reason why it keeps its order.
        reads, writes: blocks of activations, with the operation and the operand where they pass.
    """

    units: tuple[Units, ...]
    pieces: tuple[Piece, ...]
    fixed: Mapping[str, str]
    reads: tuple[tuple[int, int | None, Piece], ...]
    writes: tuple[tuple[int, int | None, Piece], ...]

    def identity(self) -> Permutations:
        """The permutations that change nothing."""
        found = {}
        for label, one in enumerate(self.units):
            order = torch.arange(one.size)
            found[label] = order if one.parent is None else order.repeat(self.units[one.parent].size, 1)
        return found

    def children(self, label: int) -> list[int]:
        return [other for other, one in enumerate(self.units) if one.parent == label]

    def permuted(
        self, piece: Piece, block: Tensor, perms: Permutations, leave: tuple[int, ...] = ()
    ) -> Tensor:
        """``block`` with its axes in the order of ``perms``, except the axes ``leave``."""
        axes = [(d, label) for d, label in enumerate(piece.labels) if label in perms and d not in leave]
        for d, label in axes:
            if self.units[label].parent is None:
                block = block.index_select(d, perms[label])
        for d, label in axes:
            parent = self.units[label].parent
            if parent is not None:
                shape = [1] * block.dim()
                at = piece.labels.index(parent)
                shape[at], shape[d] = perms[label].shape
                order = perms[label] if at < d else perms[label].T
                block = torch.take_along_dim(block, order.reshape(shape), d)
        return block

    def apply(self, tensors: Mapping[str, Tensor], perms: Permutations) -> None:
        """Permute weights and statistics in place."""
        moved = {label for label, order in perms.items() if bool((order != _order(order)).any())}
        for piece in self.pieces:
            if moved.intersection(piece.labels):
                tensor = tensors[piece.name]
                piece.put(tensor, self.permuted(piece, piece.of(tensor), perms))


def _order(perm: Tensor) -> Tensor:
    return torch.arange(perm.shape[-1])
