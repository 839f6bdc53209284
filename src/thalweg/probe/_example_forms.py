"""Per-example gradients of one parameter, held in whatever form their sums are cheapest in.

A linear layer's gradient for example i is a product of two thin matrices, :math:`g_i = L_i^T R_i`, with a row
for every position of the example. Its norm needs no g_i (Goodfellow 2015, arXiv 1510.01799; for sequences the
two formulas of arXiv 2009.10179 and 2106.15437):

.. math:: \\|g_i\\|^2 = \\sum_{t,s} (L_{it} \\cdot L_{is}) (R_{it} \\cdot R_{is})
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import prod

import torch
from torch import Tensor

# Entries worked on at a time: what a core's cache holds, and what Gram matrices may allocate.
WORK = 2**18
BLOCK = 2**22
# Relative cost of an entry of an explicit gradient that is only squared and added, in multiply-adds.
ENTRY = 20
# A product of two thin matrices runs at this share of the speed of a large one.
THIN = 1.5

Factors = Callable[[slice], tuple[Tensor, Tensor]]


def wide(t: Tensor) -> Tensor:
    """At least float32."""
    return t.to(torch.promote_types(t.dtype, torch.float32))


def parts(examples: int, entries: int, limit: int = WORK) -> Iterator[slice]:
    """Slices of the examples so that ``entries`` an example stay within ``limit`` together."""
    step = max(1, min(examples, limit // max(entries, 1)))
    return (slice(start, min(start + step, examples)) for start in range(0, examples, step))


def _flat(g: Tensor) -> Tensor:
    return g.reshape(len(g), -1)


def _added(whole: Tensor | None, rows: Tensor) -> Tensor:
    """The sum of the rows on top of ``whole``: as a product it reads them once and writes nothing else."""
    whole = rows.new_zeros(rows.shape[1]) if whole is None else whole
    return whole.addmv_(rows.T, rows.new_ones(len(rows)))


class Form(ABC):
    """g_1 to g_B of one parameter. Where a subclass has no short way, they are written out part by part."""

    def __init__(self, examples: int, shape: Sequence[int]) -> None:
        self.examples, self.shape = examples, tuple(shape)
        self.entries = prod(self.shape)

    @abstractmethod
    def explicit(self, part: slice) -> Tensor:
        """The gradients themselves, shape (examples of ``part``, *shape)."""

    def written(self) -> Iterator[Tensor]:
        """Some examples' after the other, (b, entries); each may be over when the next is asked for."""
        return (_flat(self.explicit(part)) for part in parts(self.examples, self.entries))

    def norms(self, total: bool) -> tuple[Tensor, Tensor | None]:
        """Squared norms, shape (B,), and the sum over examples if asked for."""
        found, whole = [], None
        for g in self.written():
            found.append(torch.linalg.vector_norm(g, dim=1))
            if total:
                whole = _added(whole, g)
        return torch.cat(found).square_(), None if whole is None else whole.view(self.shape)

    def dots(self, direction: Tensor) -> Tensor:
        """Inner products with ``direction`` of the parameter's shape, (B,)."""
        flat = direction.reshape(-1)
        return torch.cat([g @ flat for g in self.written()])

    def squares(self) -> Tensor:
        """Sum over examples of the squared entries, of the parameter's shape."""
        whole = None
        for g in self.written():
            whole = _added(whole, g.square_())
        assert whole is not None
        return whole.view(self.shape)

    def gram(self) -> Tensor:
        """All inner products, (B, B)."""
        found = []
        for rows in parts(self.examples, self.entries, BLOCK):
            left = _flat(self.explicit(rows))
            columns = parts(self.examples, self.entries, BLOCK)
            row = [left @ (left if other == rows else _flat(self.explicit(other))).T for other in columns]
            found.append(torch.cat(row, 1))
        return torch.cat(found)


class Dense(Form):
    """The gradients as they are: of biases and norms, which are no larger than activations."""

    def __init__(self, values: Tensor, shape: Sequence[int]) -> None:
        super().__init__(len(values), shape)
        self.values = wide(values)

    def explicit(self, part: slice) -> Tensor:
        # A copy, since callers may square in place.
        return self.values[part].reshape(-1, *self.shape).clone()

    def norms(self, total: bool) -> tuple[Tensor, Tensor | None]:
        flat = _flat(self.values)
        return torch.linalg.vector_norm(flat, dim=1).square(), flat.sum(0).view(self.shape) if total else None

    def gram(self) -> Tensor:
        flat = _flat(self.values)
        return flat @ flat.T


class Outer(Form):
    """:math:`L_i^T R_i` by group: factors (b, groups, T, p) and (b, groups, T, q) of a part of the examples.

    Args:
        sizes: (groups, T, p, q).
        lazy: the factors cost memory, and must not be asked for all examples at once.
    """

    def __init__(
        self, examples: int, sizes: Sequence[int], shape: Sequence[int], factors: Factors, lazy: bool = False
    ) -> None:
        super().__init__(examples, shape)
        self.groups, self.positions, self.p, self.q = sizes
        self.factors, self.lazy = factors, lazy

    def explicit(self, part: slice) -> Tensor:
        left, right = self.factors(part)
        return (left.mT @ right).reshape(-1, *self.shape)

    def written(self) -> Iterator[Tensor]:
        held: Tensor | None = None
        for part in parts(self.examples, self.entries, 4 * WORK):
            left, right = (factor.flatten(0, 1) for factor in self.factors(part))
            # In one place, which stays in the cache, rather than in a new one for every part.
            held = left.new_empty(len(left), self.p, self.q) if held is None else held
            yield torch.bmm(left.mT, right, out=held[: len(left)]).view(-1, self.entries)

    def norms(self, total: bool) -> tuple[Tensor, Tensor | None]:
        t, p, q = self.positions, self.p, self.q
        narrow = THIN * t * t * (p + q) + (0.7 * t * p * q if total else 0)
        if t > 1 and narrow > p * q * (t + ENTRY):
            return super().norms(total)
        found, whole = [], None
        held = self.groups * max(2 * t * t, t * (p + q) if self.lazy else 0)
        for part in parts(self.examples, held, 4 * WORK):
            left, right = self.factors(part)
            if t == 1:
                lengths = left.square().sum((2, 3)) * right.square().sum((2, 3))
            else:
                lengths = (left @ left.mT).mul_(right @ right.mT).sum((2, 3))
            found.append(lengths.sum(1))
            if total and self.lazy:
                piece = _summed(left, right)
                whole = piece if whole is None else whole.add_(piece)
        if total and whole is None:
            whole = _summed(*self.factors(slice(0, self.examples)))
        return torch.cat(found).clamp_min_(0), None if whole is None else whole.view(self.shape)

    def dots(self, direction: Tensor) -> Tensor:
        matrix = direction.reshape(self.groups, self.p, self.q)
        found = []
        held = self.groups * self.positions * (2 * self.q + self.p)
        for part in parts(self.examples, held, 4 * WORK):
            left, right = self.factors(part)
            found.append((left @ matrix).mul_(right).sum((1, 2, 3)))
        return torch.cat(found)

    def squares(self) -> Tensor:
        if self.positions > 1:
            return super().squares()
        held = self.groups * (self.p + self.q)
        pieces = (self.factors(part) for part in parts(self.examples, held, BLOCK))
        return sum(_summed(left.square(), right.square()) for left, right in pieces).view(self.shape)  # type: ignore[union-attr]

    def gram(self) -> Tensor:
        if self.positions == 1:
            left, right = (factor.squeeze(2).transpose(0, 1) for factor in self.factors(slice(None)))
            return ((left @ left.mT) * (right @ right.mT)).sum(0)
        # Some rows of every example's gradient at a time.
        width = max(1, min(self.p, BLOCK // (self.examples * self.q)))
        held = self.groups * self.positions * (self.p + self.q)
        whole: Tensor | None = None
        for start in range(0, self.p, width):
            for group in range(self.groups):
                rows = [
                    (left[:, group, :, start : start + width].mT @ right[:, group]).flatten(1)
                    for left, right in map(self.factors, parts(self.examples, held, BLOCK))
                ]
                flat = torch.cat(rows)
                whole = flat @ flat.T if whole is None else whole.addmm_(flat, flat.T)
        assert whole is not None
        return whole


def _summed(left: Tensor, right: Tensor) -> Tensor:
    """Sum over examples and positions of the outer products, (groups, p, q)."""
    left, right = (factor.transpose(0, 1).flatten(1, 2) for factor in (left, right))
    return left.mT @ right


class Pulled(Form):
    """Gradients at a tensor computed from the parameter alone, carried back to it by ``pull``."""

    def __init__(self, inner: Form, shape: Sequence[int], pull: Callable[[Tensor], Tensor]) -> None:
        super().__init__(inner.examples, shape)
        self.inner, self.pull = inner, pull

    def explicit(self, part: slice) -> Tensor:
        return wide(self.pull(self.inner.explicit(part)))
