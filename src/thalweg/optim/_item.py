"""What runs through a line as one: a parameter, or many small ones laid end to end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from thalweg.optim import _layout
from thalweg.optim._place import Place

if TYPE_CHECKING:
    from thalweg.optim._kernel import Kernel
    from thalweg.optim._line import Line
    from thalweg.optim._pass import Pass

# Up to this many elements a parameter runs together with others: calling the kernel costs more than copying.
SMALL = 1 << 14
# A gate that has let a parameter through is asked again after this many more steps; its link measures anyway.
SURE = 15
# The most elements that are copied for one call of a kernel, and that a piece of an update has.
LONGEST = 1 << 20
PIECE = 1 << 18


@dataclass
class Scalars:
    """The scalars of a line for one group and step: packed for kernels, plain for whole tensors."""

    packed: Tensor
    plain: list[float]
    restart: bool
    none: Tensor

    @functools.cached_property
    def address(self) -> int:
        """Where ``packed`` lies in memory."""
        return self.packed.data_ptr()


class Item:
    """One parameter on its way through a step; ``u`` and ``sums`` carry what one pass leaves for the next."""

    u: Tensor
    gradient: Tensor

    def __init__(
        self,
        source: Tensor,
        place: Place,
        line: Line,
        scalars: Scalars,
        seed: Tensor,
        otherwise: Scalars | None = None,
    ):
        self.source, self.place, self.line, self.scalars, self.seed = source, place, line, scalars, seed
        self.otherwise = otherwise  # scalars of the line that a gate may send it to
        self.sums = scalars.none
        self.stage = 0
        self.started = False

    def start(self) -> None:
        """Lay the gradient out flat, unless that is done: it costs time, and a fleet does without."""
        if not self.started:
            self.u = self.gradient = self.place.flat_gradient(self.source)
            self.started = True

    @property
    def position(self) -> tuple[int, int]:
        """Which of the parameters that go this way it is, and of how many."""
        return self.line.members[self.source], len(self.line.members)

    def run_stage(self) -> None:
        """Take the passes of the stage that is due."""
        self.start()
        if self.stage == 0 and self.line.gate is not None and self.otherwise is not None:
            self._ask(*self.line.gate, self.otherwise)
        self._add_totals(self.line.stages[self.stage][0][0])
        for part, kernel in self.line.stages[self.stage]:
            if self.place.flat.numel() or part.measures is not None:
                self._run(part, kernel)
        self.stage += 1

    @property
    def joins(self) -> bool:
        """Whether what is left to do can be done for many parameters at once."""
        last = self.line.fleet is not None and self.stage == len(self.line.stages) - 1
        return last and (not self.started or self.u is self.gradient)

    def last_call(self) -> tuple[Any, ...]:
        """The arguments of the line's last kernel."""
        self.start()
        place, (part, _) = self.place, self.line.stages[-1][0]
        gradient = self.gradient if part.gradient else None
        scalars = (self.scalars.packed, self.seed, self.sums)
        return *scalars, place.flat, self.u, gradient, place.slots.get("kahan"), *place.in_order(part.slots)

    def last_addresses(self) -> list[int]:
        """Where those arguments are; 0 for one that is None."""
        place, (part, _) = self.place, self.line.stages[-1][0]
        weights, lost, *slots = place.addresses(part.slots)
        if self.started or not place.lies_like(self.source.grad):
            self.start()
            u = self.u.data_ptr()
        else:
            assert self.source.grad is not None
            u = self.source.grad.data_ptr()
        sums = 0 if self.sums is self.scalars.none else self.sums.data_ptr()
        gradient = u if part.gradient else 0
        return [self.scalars.address, self.seed.data_ptr(), sums, weights, u, gradient, lost, *slots]

    def _ask(self, part: Pass, kernel: Kernel, otherwise: Scalars) -> None:
        """Leave the line for a shorter one if its gate says so; on a GPU the answer would cost more."""
        place, shorter, sure = self.place, self.line.ungated, self.line.sure
        if place.flat.device.type != "cpu" or not place.flat.numel():
            return
        if sure.get(self.source):
            sure[self.source] -= 1
            return
        rows = [place.by_rows(one) for one in (place.flat, self.u)]
        _, applies = kernel(self.scalars.packed, self.seed, self.sums, *rows, rows[1], None)
        assert applies is not None and shorter is not None
        ways = [(self.line, self.scalars), (shorter, otherwise)]
        sure[self.source] = SURE if (applied := bool(applies.item())) else 0
        taken, left = ways if applied else reversed(ways)
        if place.shape not in self.line.known:
            self.line.known.add(place.shape)
            # Walked once to no effect, so that a change of ways compiles nothing in the middle of a run.
            twin = Item(self.source, place.copied(), *left, self.seed)
            while not twin.done:
                twin.run_stage()
        self.line, self.scalars = taken

    def _run(self, part: Pass, kernel: Kernel) -> None:
        place = self.place
        gradient = self.gradient if part.gradient else None
        lost = place.slots.get("kahan") if part.writes else None
        moving = [place.flat, self.u, gradient, lost]
        state = [place.slots[key] for key in part.slots]
        if part.view == "whole":
            moving = [None if one is None else place.shaped(one) for one in moving]
            pairs = zip(part.slots, state, strict=True)
            state = [one if key in self.line.other else place.shaped(one) for key, one in pairs]
            index, count = self.position
            known = {"index": index, "count": count, "owned": self.owned}
            update, _ = kernel(self.scalars.plain, known, None, *moving, *state)
            assert update is not None
            self.u = _layout.in_order_of(place.dense, update)
            return
        if part.view == "flat" and not part.writes and part.measures is None and self.owned:
            self._run_in_place(kernel, moving, state)
            return
        if part.view == "rows":
            moving = [None if one is None else place.by_rows(one) for one in moving]
            state = [place.by_rows(one) for one in state]
        update, measured = kernel(self.scalars.packed, self.seed, self.sums, *moving, *state)
        if update is not None and part.last > part.first:
            self.u = update.view(-1)
        if measured is not None:
            self.sums = measured

    def _run_in_place(self, kernel: Kernel, moving: list[Tensor | None], state: list[Tensor]) -> None:
        """Turn an update that is ours into the next one piece by piece, without a second of its size."""
        for start in range(0, len(self.u), PIECE):
            piece = slice(start, start + PIECE)
            parts = [None if one is None else one[piece] for one in (*moving, *state)]
            update, _ = kernel(self.scalars.packed, self.seed, self.sums, *parts)
            assert update is not None
            self.u[piece] = update

    def _add_totals(self, part: Pass) -> None:
        """Put beside the sums over rows, now complete, what ``part`` wants added up from them."""
        if not part.wants_totals or part.adds_up:
            return
        own = torch.stack(part.totals(self.sums.unbind(), self.scalars.plain))
        own = _layout.add_over_shards(own, self.source, of_rows=False)
        self.sums = torch.cat([self.sums, own.view(-1, 1, 1).expand(-1, self.sums.shape[1], -1)])

    @property
    def owned(self) -> bool:
        """Whether ``u`` is not the gradient itself, which a link may have handed on and nobody may change."""
        return self.u is not self.gradient and self.u.data_ptr() != self.gradient.data_ptr()

    @property
    def awaits(self) -> int | None:
        """The link whose sums must be added up with other parameters' or shards', if one comes next."""
        part = self.line.stages[self.stage - 1][-1][0] if self.stage else None
        if part is None or part.measures is None:
            return None
        scope = part.links[part.measures].transform.scope
        apart = _layout.rows_are_apart(self.source) if scope == "rows" else _layout.is_sharded(self.source)
        return part.measures if apart or scope == "model" else None

    @property
    def done(self) -> bool:
        return self.stage == len(self.line.stages)

    def finish(self) -> None:
        self.place.write_back()
        if self.started:
            self.u = self.gradient  # the next parameter can have the memory


class Parcel(Item):
    """Small parameters with the same line and scalars, copied end to end and back again."""

    def __init__(self, items: Sequence[Item]):
        first = items[0]
        self.items, self.line, self.scalars, self.seed = items, first.line, first.scalars, first.seed
        self.source, self.sums, self.stage, self.started = first.source, first.sums, 0, True
        for item in items:
            item.start()
        places = [item.place for item in items]
        flat = torch.cat([place.flat for place in places])
        slots = {key: torch.cat([place.slots[key] for place in places]) for key in first.place.slots}
        self.place = replace(
            first.place,
            weights=flat,
            dense=flat,
            flat=flat,
            slots=slots,
            shape=flat.shape,
            strides=flat.stride(),
            length=len(flat),
            known_addresses={},
        )
        self.u = self.gradient = torch.cat([item.u for item in items])

    def finish(self) -> None:
        places = [item.place for item in self.items]
        sizes = [place.flat.numel() for place in places]
        torch._foreach_copy_([place.flat for place in places], self.place.flat.split(sizes))
        for key, joined in self.place.slots.items():
            torch._foreach_copy_([place.slots[key] for place in places], joined.split(sizes))
        for place in places:
            place.write_back()


def parcelled(items: Sequence[Item]) -> list[Item]:
    """The same items with small ones of a kind put together, in an order that only shapes decide."""
    kinds: dict[tuple, list[Item]] = {}
    lengths: dict[tuple, int] = {}
    for item in items:
        place, size = item.place, item.place.flat.numel()
        key: tuple = (id(item),)
        if size <= SMALL and place.plain and item.line.packs:
            assert item.source.grad is not None
            key = (id(item.line), id(item.scalars), item.source.grad.dtype, place.kind)
            lengths[key] = lengths.get(key, 0) + size
            key = (*key, lengths[key] // LONGEST)
        kinds.setdefault(key, []).append(item)
    return [kind[0] if len(kind) == 1 else Parcel(kind) for kind in kinds.values()]
