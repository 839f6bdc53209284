"""A chain cut into passes: consecutive links that share one sweep over memory.

A transform that needs sums ends the pass before it, because its update needs what the whole pass adds up; one
that needs its tensor whole has a pass to itself. Where it can, a pass that measures is a rehearsal: it keeps
nothing of what it computes but the sums, and the next pass computes it again. That is faster than writing the
update and reading it back, and takes no memory.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from thalweg.optim._chain import Layout, Link
from thalweg.optim.transform import Scalars, State

View = Literal["flat", "rows", "whole"]
WHOLE = ("whole", "matrix")


@dataclass(frozen=True)
class Pass:
    """Some consecutive links, run in one sweep over a tensor.

    Attributes:
        first, last: the slice of links that it runs.
        reads: the link for which the pass before it has measured, or None.
        measures: the link whose sums it produces on the way out, or None.
        slots: the state keys that it reads, in the order in which it is given their tensors.
        view: whether tensors come flat, as (rows, everything else), or in their own shape.
        gradient: whether it also reads the parameter's own gradient.
        rehearses: whether it only measures; the next pass runs its links again.
        adds_up: whether it adds up the totals itself, from the sums over all rows.
        gates: whether it gives no sums, but whether the link for which it measures applies now.
    """

    links: tuple[Link, ...]
    layout: Layout
    first: int
    last: int
    reads: int | None
    measures: int | None
    slots: tuple[str, ...]
    view: View
    gradient: bool
    rehearses: bool
    adds_up: bool = False
    gates: bool = False

    @property
    def writes(self) -> bool:
        """Whether the update that comes out moves the weights."""
        return self.measures is None and self.last == len(self.links)

    @property
    def wants_totals(self) -> bool:
        """Whether the link whose sums it reads wants them added up over the rows as well."""
        return self.reads is not None and self.links[self.reads].transform.totals is not None

    def totals(self, sums: Sequence[Tensor], scalars: Sequence[Any]) -> tuple[Tensor, ...]:
        """What that link adds up, each a 0-d tensor."""
        assert self.reads is not None
        add = self.links[self.reads].transform.totals
        assert add is not None
        return add(sums, self.layout.unpack(self.reads, scalars, ()))

    def with_totals(self, sums: Tensor, scalars: Sequence[Any]) -> tuple[Tensor, ...]:
        """Sums over rows, and behind them the totals, repeated for each row."""
        received = sums.unbind()
        return *received, *(one.expand_as(received[0]) for one in self.totals(received, scalars))

    def verdict(self, measured: Tensor, scalars: Sequence[Any]) -> Tensor:
        """What the gate says to the sums, as one number."""
        assert self.measures is not None
        gate = self.links[self.measures].transform.gate
        assert gate is not None
        sums = replace(self, reads=self.measures).with_totals(measured, scalars)
        return gate(self.layout.unpack(self.measures, scalars, sums)).any().double().view(1)

    @property
    def used(self) -> tuple[Link, ...]:
        """The links that it runs, and the one that it measures for."""
        return self.links[self.first : self.last + (self.measures is not None)]

    def run(
        self,
        packed: Sequence[Tensor] | Sequence[float],
        sums: Sequence[Tensor],
        u: Tensor,
        p: Tensor,
        gradient: Tensor | None,
        slots: Sequence[Tensor],
        spare: bool = False,
        **further: Any,
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
        """Give the update behind these links, the new values of the slots and the sums for the next pass.

        Old values of slots may be overwritten if ``spare``; ``further`` is what else ``k`` is to hold.
        """
        further["gradient"] = gradient
        values = dict(zip(self.slots, slots, strict=True))
        for index in range(self.first, self.last):
            one = self.links[index]
            owned = spare and len(one.owned) == len(one.slots)  # others still need what is theirs
            state = State({name: values[key] for name, key in one.slots.items()}, owned)
            u, state = one.transform.update(u, p, state, self._scalars(index, packed, sums, further))
            for name in one.owned:
                values[one.slots[name]] = state.slots[name]
        kept = tuple(values[key] for key in self.slots)
        if self.measures is None:
            return u, kept, None
        one = self.links[self.measures]
        state = State({name: values[key] for name, key in one.slots.items() if key in values})
        assert one.transform.measure is not None
        measured = one.transform.measure(u, p, state, self._scalars(self.measures, packed, (), further))
        return u, kept, torch.stack([m.double() for m in measured])

    def _scalars(
        self,
        index: int,
        packed: Sequence[Tensor] | Sequence[float],
        sums: Sequence[Tensor],
        further: Mapping[str, Any],
    ) -> Scalars:
        k = self.layout.unpack(index, packed, sums)
        return Scalars({**k.values, **further})


def cut(links: tuple[Link, ...], layout: Layout) -> tuple[Pass, ...]:
    """Cut the chain before every transform that measures, and around every one that needs a whole tensor."""
    cuts = {0, len(links)}
    for index, one in enumerate(links):
        if one.transform.measure:
            cuts.add(index)
        if one.transform.scope in WHOLE:
            cuts |= {index, index + 1}
    # What is seen first, or behind a link that got its tensor whole and adds nothing up, has its own pass.
    alone = {
        index
        for index, one in enumerate(links)
        if one.transform.measure and (index == 0 or links[index - 1].transform.scope in WHOLE)
    }
    edges = sorted([*cuts, *alone])
    found = []
    again = reads = None
    for first, last in itertools.pairwise(edges if len(edges) > 1 else [0, 0]):
        follows = links[last] if last < len(links) else None
        measures = last if follows is not None and follows.transform.measure else None
        if measures in alone and first < last:
            measures = None
        start = first if again is None else again
        # A link that needs sums itself cannot run twice: only one link's sums are at hand at a time.
        rehearses = (
            measures is not None and last > first and again is None and not links[first].transform.measure
        )
        rehearses = rehearses and links[first].transform.scope not in WHOLE
        found.append(_pass(links, layout, start, last, reads, measures, rehearses))
        reads = measures
        again = first if rehearses else None
    if links and links[-1].transform.scope in WHOLE:
        end = len(links)
        found.append(_pass(links, layout, end, end, None, None))  # a flat pass writes the weights
    return tuple(found)


def gate(links: tuple[Link, ...], layout: Layout, index: int) -> Pass:
    """The pass over gradient and weights that asks whether the link at ``index`` applies to them."""
    asked = _pass(links, layout, 0, 0, None, index)
    return replace(asked, slots=(), gates=True)


def _pass(
    links: tuple[Link, ...],
    layout: Layout,
    first: int,
    last: int,
    reads: int | None,
    measures: int | None,
    rehearses: bool = False,
) -> Pass:
    used = links[first : last + (measures is not None)]
    keys = [key for one in used for key in one.slots.values()]
    scopes = {one.transform.scope for one in used}
    view: View = "whole" if scopes & set(WHOLE) else "rows" if "rows" in scopes else "flat"
    gradient = any(one.transform.gradient for one in used)
    slots = tuple(dict.fromkeys(keys))
    return Pass(links, layout, first, last, reads, measures, slots, view, gradient, rehearses)
