"""How alike two models' units are in what they put out: moments of activations over batches of data.

They take the shape of weights, so that matching runs on them as it does on weights: with M_ij the moment of
unit i of the reference and unit j of the model, the blocks are the identity and the transpose of M.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from thalweg.surgery._axis_run import counts, run, undisturbed
from thalweg.surgery._orders import Piece, Symmetry

Place = tuple[int, int | None]


class _Listen(TorchDispatchMode):
    """Copies of what passes at ``places``: an operand of the n-th operation, or its result."""

    def __init__(self, places: Iterable[Place]):
        super().__init__()
        self.places = set(places)
        self.heard: dict[Place, Tensor] = {}
        self.operations: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not counts(func):
            return func(*args, **(kwargs or {}))
        call = len(self.operations)
        self.operations.append(str(func))
        for operand, value in enumerate(args):
            if (call, operand) in self.places:
                self.heard[call, operand] = value.detach().clone()
        made = func(*args, **(kwargs or {}))
        if (call, None) in self.places:
            self.heard[call, None] = made.detach().clone()
        return made


@dataclass
class _Moments:
    """Sums over samples: of products of all pairs, and of each model's units and their squares."""

    products: Tensor
    sums: list[Tensor]
    squares: list[Tensor]
    samples: int = 0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        self.products += ours @ theirs.T
        for total, square, units in zip(self.sums, self.squares, (ours, theirs), strict=True):
            total += units.sum(1)
            square += units.square().sum(1)
        self.samples += ours.shape[1]

    def correlations(self) -> Tensor:
        """Pearson's; 0 with a unit that does not vary."""
        means = [total / self.samples for total in self.sums]
        spreads = [
            (square / self.samples - mean.square()).clamp(min=0).sqrt()
            for square, mean in zip(self.squares, means, strict=True)
        ]
        # Below are rounding errors of the difference.
        spreads = [
            torch.where(spread > 1e-7 * (square / self.samples).sqrt(), spread, torch.inf)
            for spread, square in zip(spreads, self.squares, strict=True)
        ]
        covariance = self.products / self.samples - torch.outer(*means)
        return covariance / torch.outer(*spreads)


def activation_pieces(
    symmetry: Symmetry, model: nn.Module, reference: nn.Module, batches: Iterable[Any], centred: bool
) -> tuple[list[Piece], dict[str, Tensor], dict[str, Tensor]]:
    """Pieces for a ``Matching``, with the tensors of the reference and of the model.

    Units are compared where a weight reads them, or, where none does, as a weight has made them.

    Raises:
        ValueError: there is no batch, a model does not run on one, or they run different operations.
    """
    sights = _sights(symmetry)
    moments = [_empty(symmetry, head, piece) for _, head, piece in sights]
    places = {place for place, _, _ in sights}
    count = 0
    for batch in batches:
        count += 1
        theirs, ours = (_hear(which, batch, places) for which in (model, reference))
        if ours.operations != theirs.operations:
            raise ValueError("reference must run the same operations as model on every batch, got others")
        for found, (place, head, piece) in zip(moments, sights, strict=True):
            shapes = [tuple(one.heard[place].shape) for one in (theirs, ours)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    "reference must send as many samples as model wherever a weight reads them, got tensors "
                    f"of {shapes[1]} and {shapes[0]} (a router?): method='weights' needs no batches"
                )
            found.add(*(_units(symmetry, head, piece, one.heard[place]) for one in (ours, theirs)))
    if not count:
        raise ValueError("batches must hold at least one batch, got none")
    pieces, eyes, values = [], {}, {}
    for number, (found, (_, head, piece)) in enumerate(zip(moments, sights, strict=True)):
        axes = _family_axes(symmetry, head, piece)
        n = len(found.products)
        shape = (*(piece.shape[d] for d in axes), n)
        name = f"activations {number}"
        labels = (*(piece.labels[d] for d in axes), None)
        pieces.append(Piece(name, (None,) * len(shape), shape, labels, tuple(range(len(shape)))))
        eyes[name] = torch.eye(n, dtype=torch.float64).reshape(shape)
        values[name] = (found.correlations() if centred else found.products).T.reshape(shape)
    return pieces, eyes, values


def _hear(model: nn.Module, batch: Any, places: Iterable[Place]) -> _Listen:
    listen = _Listen(places)
    with undisturbed(model), listen:
        try:
            run(model, batch)
        except Exception as error:
            raise ValueError(
                f"batches must hold what {type(model).__name__} runs on, got {type(error).__name__}: {error}"
            ) from error
    return listen


def _sights(symmetry: Symmetry) -> list[tuple[Place, int, Piece]]:
    """Where each family of units is looked at: place, head of the family, block of the activation."""
    found: dict[tuple[int, int], tuple[Place, int, Piece]] = {}
    for label, one in enumerate(symmetry.units):
        head = label if one.parent is None else one.parent
        reads = [sight for sight in symmetry.reads if label in sight[2].labels]
        for call, operand, piece in reads or [s for s in symmetry.writes if label in s[2].labels]:
            found[id(piece), head] = ((call, operand), head, piece)
    return list(found.values())


def _family_axes(symmetry: Symmetry, head: int, piece: Piece) -> list[int]:
    family = {head, *symmetry.children(head)}
    return [d for d, label in enumerate(piece.labels) if label in family]


def _units(symmetry: Symmetry, head: int, piece: Piece, activation: Tensor) -> Tensor:
    """One row a unit, one column a sample."""
    axes = _family_axes(symmetry, head, piece)
    block = _resized(piece, activation.shape).of(activation.to("cpu", torch.float64))
    block = block.movedim(tuple(axes), tuple(range(len(axes))))
    return block.flatten(0, len(axes) - 1).flatten(1)


def _resized(piece: Piece, shape: Sequence[int]) -> Piece:
    """The piece for a batch with more or fewer samples than the one that was traced."""
    sizes = list(piece.shape)
    for axis, n in enumerate(shape):
        dims = [d for d, at in enumerate(piece.axes) if at == axis]
        known = math.prod(sizes[d] for d in dims)
        loose = [d for d in dims if piece.labels[d] is None]
        if piece.index[axis] is not None or known == n:
            continue
        others = known // sizes[loose[0]] if loose else known
        if not loose or n % others:
            raise ValueError(
                f"batches must be shaped like inputs but for the number of samples, got an activation of "
                f"{tuple(shape)}"
            )
        sizes[loose[0]] = n // others
    return replace(piece, shape=tuple(sizes))


def _empty(symmetry: Symmetry, head: int, piece: Piece) -> _Moments:
    n = math.prod(piece.shape[d] for d in _family_axes(symmetry, head, piece))
    zeros = [torch.zeros(n, dtype=torch.float64) for _ in range(4)]
    return _Moments(torch.zeros(n, n, dtype=torch.float64), zeros[:2], zeros[2:])


def check_batches(batches: Any) -> Iterable[Any]:
    """Batches that can be read: not one tensor or mapping, which would be a batch itself."""
    if isinstance(batches, Tensor | Mapping) or not isinstance(batches, Iterable):
        raise ValueError(f"batches must be a list or loader of batches, got {type(batches).__name__}")
    return batches
