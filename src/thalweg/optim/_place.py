"""A parameter and its state as flat memory, found once and kept while they stay where they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from thalweg.optim import _layout


@dataclass(frozen=True)
class Place:
    """Where one parameter lives.

    Attributes:
        source_shape: of the whole parameter.
        weights: this rank's part of the parameter, real, sharing its memory.
        dense: the same, or a dense copy of it if its memory has gaps; then it is written back after a step.
        flat, slots: ``dense`` and the state in one dimension, in the same order; other state as it is.
        sources, identities: the entries of the state that ``slots`` was made from.
        plain: whether parameter and gradient are ordinary real tensors.
        kind: what must be the same for parameters to be laid end to end.
        offset: index of the first element in the whole parameter.
        shape, strides, length: of ``dense``, ``dense`` and ``flat``.
    """

    address: int
    source_shape: torch.Size
    weights: Tensor
    dense: Tensor
    flat: Tensor
    slots: dict[str, Tensor]
    sources: tuple[Tensor, ...]
    identities: tuple[int, ...]
    plain: bool
    kind: tuple
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]
    length: int
    known_addresses: dict[tuple[str, ...], list[int]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, p: Tensor, state: dict[str, Tensor], other: Collection[str] = (), rows: bool = False
    ) -> Place:
        """Find them; state whose strides are no longer the parameter's is laid out anew first.

        Args:
            other: keys of the state that is not shaped like the parameter.
            rows: whether rows have to lie in memory one after the other.
        """
        weights = _layout.real(_layout.local(p.detach()))
        if _layout.dense(weights) and (not rows or _layout.rows_are_whole(weights)):
            dense = weights
        else:
            dense = torch.empty(weights.shape, dtype=weights.dtype, device=weights.device)
        for key, one in list(state.items()):
            if key == "step" or key in other:
                continue
            if one.shape != p.shape:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} had shape {tuple(one.shape)} when its state was "
                    "made: make a new optimizer for the new shape"
                )
            if _layout.real(_layout.local(one)).stride() != dense.stride():
                plain = torch.contiguous_format if dense.is_contiguous() else torch.preserve_format
                state[key] = torch.empty_like(p.detach(), dtype=one.dtype, memory_format=plain).copy_(one)
        slots = {
            key: one if key in other else _layout.in_order_of(dense, _layout.real(_layout.local(one)))
            for key, one in state.items()
            if key != "step"
        }
        sources = tuple(state.values())
        dtypes = tuple((key, one.dtype) for key, one in slots.items())
        return cls(
            address=weights.data_ptr(),
            source_shape=p.shape,
            weights=weights,
            dense=dense,
            flat=_layout.flat(dense),
            slots=slots,
            sources=sources,
            identities=tuple(map(id, sources)),
            plain=not p.is_complex() and not _layout.is_distributed(p),
            kind=(dense.dtype, dense.device, dtypes),
            offset=_layout.place_of(p),
            shape=dense.shape,
            strides=dense.stride(),
            length=dense.numel(),
        )

    def still_holds(self, p: Tensor, state: dict[str, Tensor]) -> bool:
        """Whether neither the parameter nor its state has moved since."""
        if tuple(map(id, state.values())) != self.identities:
            return False
        weights = p if self.plain else _layout.real(_layout.local(p.detach()))
        return (
            self.address == weights.data_ptr()
            and self.weights.shape == weights.shape
            and self.weights.stride() == weights.stride()
        )

    def flat_gradient(self, p: Tensor) -> Tensor:
        """The gradient in one dimension, in the order of ``flat``."""
        assert p.grad is not None
        grad = p.grad if self.plain else _layout.real(_layout.local(p.grad.detach()))
        return _layout.in_order_of(self.dense, grad)

    def read(self) -> None:
        """Bring a copy up to date."""
        if self.dense is not self.weights:
            self.dense.copy_(self.weights)

    def write_back(self) -> None:
        """Bring the parameter up to date with its copy."""
        if self.dense is not self.weights:
            self.weights.copy_(self.dense)

    def in_order(self, keys: Collection[str]) -> tuple[Tensor, ...]:
        """The slots of these keys."""
        return tuple(self.slots[key] for key in keys)

    def addresses(self, keys: tuple[str, ...]) -> list[int]:
        """Addresses of the weights, of what Kahan's summation lost (else 0) and of these slots."""
        if keys not in self.known_addresses:
            lost = self.slots.get("kahan")
            found = [self.flat.data_ptr(), 0 if lost is None else lost.data_ptr()]
            self.known_addresses[keys] = found + [self.slots[key].data_ptr() for key in keys]
        return self.known_addresses[keys]

    def lies_like(self, gradient: Tensor | None) -> bool:
        """Whether the gradient lies in memory in the order of ``flat``."""
        if not self.plain or gradient is None:
            return False
        return gradient.stride() == self.strides and gradient.shape == self.shape

    def copied(self) -> Place:
        """The same in memory of its own."""
        dense = self.dense.clone(memory_format=torch.preserve_format)
        slots = {key: one.clone() for key, one in self.slots.items()}
        return replace(
            self, weights=dense, dense=dense, flat=_layout.flat(dense), slots=slots, known_addresses={}
        )

    def shaped(self, line: Tensor) -> Tensor:
        """A flat tensor in the parameter's shape, sharing its memory."""
        return line.as_strided(self.dense.shape, self.dense.stride())

    def by_rows(self, line: Tensor) -> Tensor:
        """A flat tensor as (rows, everything else), sharing its memory; a vector is one row."""
        shape = self.dense.shape
        return line.view(shape[0], shape[1:].numel()) if len(shape) > 1 else line.view(1, -1)
