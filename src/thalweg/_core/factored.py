"""Preconditioners that are no diagonal: symmetric maps of one parameter's gradient, known by a factor."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

__all__ = ["Factored", "InSubspace", "OfLengths"]


class Factored(ABC):
    r"""A positive semi-definite :math:`P = F F^\top` of one parameter; :math:`P` is never written out.

    The eigenvalues of :math:`P H` other than 0 are those of :math:`F^\top H F`, which is symmetric.

    Attributes:
        shape: of the parameter.
        size: columns of :math:`F`.
    """

    shape: torch.Size
    size: int

    @abstractmethod
    def factor(self, x: Tensor) -> Tensor:
        """:math:`F x`: a vector of shape (size,) to one shaped like the parameter."""

    @abstractmethod
    def transposed(self, g: Tensor) -> Tensor:
        r""":math:`F^\top g`: what is shaped like the parameter to shape (size,)."""

    @abstractmethod
    def bounded(self, gradient: Tensor, share: float) -> Factored:
        r"""With no entry of the diagonal inside above 1 / (share times its part of ``gradient``)."""

    @abstractmethod
    def scaled(self, by: float) -> Factored:
        """``by`` times this; ``by`` is at least 0."""

    @abstractmethod
    def finite(self) -> bool:
        """Whether everything in it is finite and the diagonal inside not negative."""

    def times(self, g: Tensor) -> Tensor:
        """:math:`P g`, shaped like the parameter."""
        return self.factor(self.transposed(g))


def sound(diagonal: Tensor) -> bool:
    """Whether it can be the diagonal of a preconditioner."""
    return bool((diagonal.isfinite() & (diagonal >= 0)).all())


def at_most(diagonal: Tensor, gradient: Tensor, share: float) -> Tensor:
    """``diagonal`` where it is below 1 / (share |gradient|), that bound elsewhere."""
    return 1 / (1 / diagonal).maximum(gradient.abs() * share)


@dataclass(frozen=True)
class InSubspace(Factored):
    r""":math:`P = c\, B D B^\top + r\,(I - B B^\top)`: a diagonal within a subspace of the smaller side.

    Attributes:
        shape: (m, n), as of every :class:`Factored`.
        basis: :math:`B`, (smaller side, rank), orthonormal or not. A matrix that is tall or square has it on
            its right: :math:`P G = c\,(D \odot (G B)) B^\top`.
        diagonal: :math:`D`, (m, rank), or (rank, n) if the matrix is wide.
        scale: :math:`c`, at least 0.
        rest: :math:`r`, what everything outside is multiplied by, at least 0; other than 0 for an orthonormal
            basis only.
    """

    shape: torch.Size
    basis: Tensor
    diagonal: Tensor
    scale: float = 1.0
    rest: float = 0.0

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.diagonal.numel() + (self.shape.numel() if self.rest else 0)

    @property
    def root(self) -> Tensor:
        return (self.diagonal * self.scale).sqrt()

    def down(self, g: Tensor) -> Tensor:
        basis = self.basis.to(g)
        return g @ basis if self.shape[0] >= self.shape[1] else basis.T @ g

    def up(self, inside: Tensor) -> Tensor:
        basis = self.basis.to(inside)
        return inside @ basis.T if self.shape[0] >= self.shape[1] else basis @ inside

    def outside(self, g: Tensor) -> Tensor:
        """What the subspace leaves of it, by the root of ``rest``."""
        return self.rest**0.5 * (g - self.up(self.down(g)))

    def factor(self, x: Tensor) -> Tensor:
        inside = x[: self.diagonal.numel()].view(self.diagonal.shape)
        out = self.up(self.root.to(x) * inside)
        return out + self.outside(x[self.diagonal.numel() :].view(self.shape)) if self.rest else out

    def transposed(self, g: Tensor) -> Tensor:
        inside = (self.root.to(g) * self.down(g)).reshape(-1)
        return torch.cat([inside, self.outside(g).reshape(-1)]) if self.rest else inside

    def bounded(self, gradient: Tensor, share: float) -> InSubspace:
        return replace(self, diagonal=at_most(self.diagonal, self.down(gradient), share))

    def scaled(self, by: float) -> InSubspace:
        return replace(self, scale=self.scale * by, rest=self.rest * by)

    def finite(self) -> bool:
        return sound(self.diagonal) and bool(self.basis.isfinite().all())


@dataclass(frozen=True)
class OfLengths(Factored):
    r""":math:`P = \hat w A \hat w^\top + \Pi P_0 \Pi`: lengths and directions of rows, each by its own.

    :math:`\Pi` takes from each row what lies along the weight's; the first term acts on that alone.

    Attributes:
        directions: :math:`\hat w`, (m, n), rows of unit length or of zeros.
        lengths: :math:`A`, (m, 1).
        inner: :math:`P_0`, a diagonal (m, n) or a :class:`Factored` of that shape.
    """

    directions: Tensor
    lengths: Tensor
    inner: Tensor | Factored

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.directions.shape

    @property
    def size(self) -> int:  # type: ignore[override]
        inner = self.inner
        return len(self.lengths) + (inner.numel() if isinstance(inner, Tensor) else inner.size)

    def along(self, g: Tensor) -> Tensor:
        return (g * self.directions.to(g)).sum(1, keepdim=True)

    def across(self, g: Tensor) -> Tensor:
        return g - self.along(g) * self.directions.to(g)

    def factor(self, x: Tensor) -> Tensor:
        rows, rest = x.split([len(self.lengths), self.size - len(self.lengths)])
        longer = (self.lengths.sqrt().to(x) * rows[:, None]) * self.directions.to(x)
        if isinstance(self.inner, Tensor):
            return longer + self.across(self.inner.sqrt().to(x) * rest.view(self.shape))
        return longer + self.across(self.inner.factor(rest))

    def transposed(self, g: Tensor) -> Tensor:
        rows, turn = self.lengths.sqrt().to(g) * self.along(g), self.across(g)
        inner = self.inner
        rest = inner.sqrt().to(g) * turn if isinstance(inner, Tensor) else inner.transposed(turn)
        return torch.cat([rows.reshape(-1), rest.reshape(-1)])

    def bounded(self, gradient: Tensor, share: float) -> OfLengths:
        turn, inner = self.across(gradient), self.inner
        tamed: Any = at_most(inner, turn, share) if isinstance(inner, Tensor) else inner.bounded(turn, share)
        return replace(self, lengths=at_most(self.lengths, self.along(gradient), share), inner=tamed)

    def scaled(self, by: float) -> OfLengths:
        inner = by * self.inner if isinstance(self.inner, Tensor) else self.inner.scaled(by)
        return replace(self, lengths=by * self.lengths, inner=inner)

    def finite(self) -> bool:
        inner = self.inner
        within = sound(inner) if isinstance(inner, Tensor) else inner.finite()
        return within and sound(self.lengths) and bool(self.directions.isfinite().all())
