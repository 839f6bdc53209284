"""One step: collect the parameters that have gradients, then take every stage over all of them in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from thalweg.optim import _layout
from thalweg.optim._finite import not_finite
from thalweg.optim._item import Item, Scalars, parcelled
from thalweg.optim._line import Line
from thalweg.optim._place import Place
from thalweg.optim._state import misfit

if TYPE_CHECKING:
    from thalweg.optim.descent import Descent


class Sweep:
    """The work of one ``Descent.step``; errors come before anything has moved."""

    def __init__(self, optimizer: Descent):
        self.optimizer = optimizer
        self.packs: dict[Any, Scalars] = {}
        self.blanks: dict[torch.device, Tensor] = {}
        groups = optimizer.param_groups
        found = [
            (at, index, p, optimizer.line_of(p, group))
            for at, group in enumerate(groups)
            for index, p in enumerate(group["params"])
            if p.grad is not None
        ]
        for at, _, p, line in found:
            _refuse(p, line)
            if line.counts:
                self._check_counts(p, groups[at], line)
        if optimizer.nonfinite != "step" and (bad := not_finite([p for _, _, p, _ in found])):
            if optimizer.nonfinite == "raise":
                at, index, p, _ = found[bad[0]]
                raise FloatingPointError(
                    f"the gradient of parameter {index} of group {at}, of shape {tuple(p.shape)}, has NaN or "
                    f"infinite entries, as have {len(bad) - 1} others; nothing was moved"
                )
            optimizer.skipped_steps += 1
            found = []
        places = [self._place(p, groups[at], line) for at, _, p, line in found]
        counters = [optimizer.state[p]["step"] for _, _, p, _ in found]
        if counters:
            torch._foreach_add_(counters, 1)
        steps = torch.stack(counters).tolist() if counters else []
        self.items = [
            self._item(at, index, p, line, place, step)
            for (at, index, p, line), place, step in zip(found, places, steps, strict=True)
        ]

    def run(self) -> None:
        """Take the stages in order; before one that needs them, add up sums over shards and parameters."""
        increment_version([item.source for item in self.items])
        waiting: list[Item] = []
        moving = parcelled(self._without_fleets(self.items))
        while moving:
            for item in moving:
                item.run_stage()
                while not item.done and item.awaits is None:
                    item.run_stage()
                if item.done:
                    item.finish()
                else:
                    waiting.append(item)
            first = min((item.awaits for item in waiting if item.awaits is not None), default=0)
            moving = [item for item in waiting if item.awaits == first]
            waiting = [item for item in waiting if item.awaits != first]
            if moving:
                _share(moving, moving[0].line.links[first].transform.scope)
                moving = self._without_fleets(moving)

    def _without_fleets(self, items: list[Item]) -> list[Item]:
        """Finish at once all items that can be finished together, and give the others."""
        fleets: dict[Any, list[Item]] = {}
        left = []
        for item in items:
            if item.joins:
                fleets.setdefault((id(item.line), item.place.kind, item.source.grad.dtype), []).append(item)  # type: ignore[union-attr]
            else:
                left.append(item)
        for together in fleets.values():
            fleet = together[0].line.fleet
            assert fleet is not None
            if not fleet.run([item for item in together if item.place.flat.numel()]):
                left += together
                continue
            for item in together:
                item.finish()
        return left

    def _check_counts(self, p: Tensor, group: dict[str, Any], line: Line) -> None:
        """Raise ValueError if a group's rank, say, is not that for which the state of ``p`` was made."""
        known, now = self.optimizer._counts, tuple(group[key] for key in line.counts)
        if (
            known.get(p, now) != now
            and (found := misfit(line, p, group, self.optimizer.state[p])) is not None
        ):
            was = dict(zip(line.counts, known[p], strict=True))
            raise ValueError(f"the state was made for {was}, and now has {found}: make a new optimizer")
        known[p] = now

    def _place(self, p: Tensor, group: dict[str, Any], line: Line) -> Place:
        optimizer = self.optimizer
        state = optimizer.slots_of(p, group)
        place = optimizer._places.get(p)
        if place is None or not place.still_holds(p, state):
            if place is not None and place.source_shape != p.shape:
                raise ValueError(
                    f"a parameter of shape {tuple(p.shape)} had shape {tuple(place.source_shape)} when its "
                    "state was made: make a new optimizer for the new shape"
                )
            place = optimizer._places[p] = Place.of(p, state, line.other, line.rows)
        return place

    def _item(self, at: int, index: int, p: Tensor, line: Line, place: Place, step: float) -> Item:
        place.read()
        device = place.flat.device
        scalars = self._scalars(at, line, step, device)
        if scalars.restart:
            self.optimizer.reset_slots(p, line)
        if self.optimizer.rounding == "stochastic":
            stream = (at * 4099 + index) * 65537 + int(step)
            seed = torch.tensor([stream, place.offset], device=device)
        else:
            if device not in self.blanks:
                self.blanks[device] = torch.zeros(2, dtype=torch.int64, device=device)
            seed = self.blanks[device]
        shorter = None if line.ungated is None else self._scalars(at, line.ungated, step, device)
        return Item(p, place, line, scalars, seed, shorter)

    def _scalars(self, at: int, line: Line, step: float, device: torch.device) -> Scalars:
        """Made once for all parameters of a group that are at the same step."""
        key = (at, id(line), step, device)
        if key not in self.packs:
            group = self.optimizer.param_groups[at]
            wide = torch.float32 if device.type == "mps" else torch.float64
            plain = line.layout.pack(group, step)
            packed = torch.tensor(plain, dtype=wide, device=device)
            none = torch.zeros(0, dtype=torch.float64, device=device)
            self.packs[key] = Scalars(packed, plain, line.restarts(group, step), none)
        return self.packs[key]


def _refuse(p: Tensor, line: Line) -> None:
    assert p.grad is not None
    if p.grad.layout != torch.strided:
        raise ValueError(
            f"sparse gradients are not supported, got one for a parameter of shape {tuple(p.shape)}: "
            "use nn.Embedding(..., sparse=False), or torch.optim.SparseAdam for that parameter"
        )
    line.refuse(p)


def _share(items: list[Item], scope: str) -> None:
    """Sums over a tensor are added over its shards; sums over the model, over all tensors as well."""
    kinds: dict[Any, list[Item]] = {}
    for item in items:
        source = item.source
        key = (source.device_mesh, source.placements) if _layout.is_sharded(source) else None  # type: ignore[attr-defined]
        kinds.setdefault(key, []).append(item)
    for kind in kinds.values():
        if scope == "rows":
            for item in kind:
                item.sums = _layout.add_over_shards(item.sums, item.source, of_rows=True)
            continue
        stacked = torch.stack([item.sums.to(kind[0].sums.device) for item in kind])
        stacked = _layout.add_over_shards(stacked, kind[0].source)
        for item, sums in zip(kind, stacked, strict=True):
            item.sums = sums.to(item.sums.device)
    if scope == "model":
        total = torch.stack([item.sums.to(items[0].sums.device) for item in items]).sum(0)
        for item in items:
            item.sums = total.to(item.sums.device)
