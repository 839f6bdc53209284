"""Per-example gradients of tables, and of parameters that are used in several places."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from thalweg.probe._example_forms import BLOCK, WORK, Dense, Form, Outer, parts, wide


class Rows(Form):
    """Gradients with few rows that are not zero, those of an embedding: ``values`` (B, T, q) at ``index``."""

    def __init__(self, index: Tensor, values: Tensor, size: int, padding: int = -1) -> None:
        super().__init__(len(values), (size, values.shape[-1]))
        self.index, self.values = index, wide(values)
        keys = index + size * torch.arange(self.examples, device=index.device)[:, None]
        keep = index != padding
        present, inverse = keys[keep].unique(return_inverse=True)
        # A row that an example uses twice is added up before anything is squared.
        self.rows = self.values.new_zeros(len(present), values.shape[-1]).index_add_(
            0, inverse, self.values[keep]
        )
        self.owner, self.place = present // size, present % size
        self.padding = padding

    def _by_example(self, numbers: Tensor) -> Tensor:
        return numbers.new_zeros(self.examples).index_add_(0, self.owner, numbers)

    def _by_place(self, rows: Tensor) -> Tensor:
        return rows.new_zeros(self.shape).index_add_(0, self.place, rows)

    def explicit(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(self.examples)
        mine = (self.owner >= start) & (self.owner < stop)
        whole = self.rows.new_zeros(stop - start, *self.shape)
        whole[self.owner[mine] - start, self.place[mine]] = self.rows[mine]
        return whole

    def norms(self, total: bool) -> tuple[Tensor, Tensor | None]:
        return self._by_example(self.rows.square().sum(1)), self._by_place(self.rows) if total else None

    def dots(self, direction: Tensor) -> Tensor:
        return self._by_example((self.rows * direction[self.place]).sum(1))

    def squares(self) -> Tensor:
        return self._by_place(self.rows.square())

    def gram(self) -> Tensor:
        places, compact = self.place.unique(return_inverse=True)
        width = max(1, BLOCK // (self.examples * self.shape[1]))
        whole = self.rows.new_zeros(self.examples, self.examples)
        for start in range(0, len(places), width):
            here = (compact >= start) & (compact < start + width)
            block = self.rows.new_zeros(self.examples, min(width, len(places) - start), self.shape[1])
            block[self.owner[here], compact[here] - start] = self.rows[here]
            whole.addmm_(block.flatten(1), block.flatten(1).T)
        return whole


class Sum(Form):
    """A parameter that is used in several places: its gradients add up before any norm is taken."""

    def __init__(self, terms: Sequence[Form]) -> None:
        super().__init__(terms[0].examples, terms[0].shape)
        self.terms = terms

    def explicit(self, part: slice) -> Tensor:
        first, *rest = (term.explicit(part) for term in self.terms)
        for term in rest:
            first = first + term
        return first

    def norms(self, total: bool) -> tuple[Tensor, Tensor | None]:
        crossed = [_cross(a, b) for a, b in combinations(self.terms, 2)]
        if any(one is None for one in crossed):
            return super().norms(total)
        alone = [term.norms(total) for term in self.terms]
        whole = sum(t for _, t in alone) if total else None  # type: ignore[misc]
        lengths = torch.stack([n for n, _ in alone] + [2 * c for c in crossed if c is not None]).sum(0)
        return lengths.clamp_min_(0), whole  # type: ignore[return-value]

    def dots(self, direction: Tensor) -> Tensor:
        return sum(term.dots(direction) for term in self.terms)  # type: ignore[return-value]


def _cross(a: Form, b: Form) -> Tensor | None:
    """Inner products of an example's two gradients where there is a short way: a tied embedding and head."""
    if isinstance(a, Rows):
        a, b = b, a
    if not (isinstance(a, Outer) and isinstance(b, Rows) and a.groups == 1 and a.shape == (a.p, a.q)):
        return None
    found = []
    for part in parts(a.examples, 2 * a.positions * b.index.shape[1], 4 * WORK):
        left, right = (factor[:, 0] for factor in a.factors(part))
        index = b.index[part]
        picked = left.gather(2, index[:, None].expand(-1, a.positions, -1))
        picked = picked.masked_fill((index == b.padding)[:, None], 0)
        found.append((picked * (right @ b.values[part].mT)).sum((1, 2)))
    return torch.cat(found)


def added(terms: Sequence[Form]) -> Form:
    """One form for the sum of several."""
    first = terms[0]
    if len(terms) == 1:
        return first
    dense = [term for term in terms if isinstance(term, Dense)]
    if len(dense) == len(terms):
        return Dense(torch.stack([d.values.reshape(d.examples, -1) for d in dense]).sum(0), first.shape)
    rows = [term for term in terms if isinstance(term, Rows)]
    if len(rows) == len(terms) and len({r.padding for r in rows}) == 1:
        index, values = torch.cat([r.index for r in rows], 1), torch.cat([r.values for r in rows], 1)
        return Rows(index, values, first.shape[0], rows[0].padding)
    outer = [term for term in terms if isinstance(term, Outer)]
    if len(outer) == len(terms) and len({(o.groups, o.p, o.q) for o in outer}) == 1:
        # The positions of all uses are those of one long sequence.
        def factors(part: slice) -> tuple[Tensor, Tensor]:
            pairs = [o.factors(part) for o in outer]
            return torch.cat([left for left, _ in pairs], 2), torch.cat([right for _, right in pairs], 2)

        sizes = (outer[0].groups, sum(o.positions for o in outer), outer[0].p, outer[0].q)
        return Outer(first.examples, sizes, first.shape, factors, lazy=True)
    return Sum(terms)
