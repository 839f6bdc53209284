"""One step: collect the parameters that have gradients, then take every pass over all of them in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from thalweg.optim import _layout
from thalweg.optim._chain import numbers
from thalweg.optim._place import Place

if TYPE_CHECKING:
    from thalweg.optim._chain import Pass
    from thalweg.optim.descent import Descent


@dataclass
class Item:
    """One parameter on its way through a step; ``u`` and ``sums`` carry what one pass leaves for the next."""

    source: Tensor
    place: Place
    u: Tensor
    packed: Tensor
    seed: Tensor
    sums: Tensor


class Sweep:
    """The work of one ``Descent.step``."""

    def __init__(self, optimizer: Descent):
        self.optimizer = optimizer
        self.packs: dict[Any, tuple[Tensor, bool]] = {}
        self.blanks: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.seeded = optimizer.rounding == "stochastic"
        groups = optimizer.param_groups
        found = [(at, i, p) for at, group in enumerate(groups) for i, p in enumerate(group["params"])]
        found = [one for one in found if one[2].grad is not None]
        for _, _, p in found:
            self._refuse(p)
        self.items = [self._item(at, groups[at], index, p) for at, index, p in found]

    def run(self) -> None:
        """Take the passes in order; between two of them, add up the sums that the next one needs."""
        for part, kernel in self.optimizer._passes:
            for item in self.items:
                if item.place.flat.numel() or part.measures is not None:
                    self._one(part, kernel, item)
            if part.measures is not None:
                self._share(part.links[part.measures].transform.scope)
        for item in self.items:
            increment_version(item.source)
            item.place.write_back()

    def _one(self, part: Pass, kernel: Any, item: Item) -> None:
        place = item.place
        slots = [place.slots[key] for key in part.slots]
        lost = place.slots.get("kahan")
        p, u = place.flat, item.u
        if part.shaped:
            p, u, *slots = map(place.shaped, (p, u, *slots))
            lost = None if lost is None else place.shaped(lost)
        update, measured = kernel(item.packed, item.seed, item.sums, p, u, lost, *slots)
        if update is not None and part.last > part.first:
            item.u = _layout.in_order_of(place.dense, update) if part.shaped else update
        if measured is not None:
            item.sums = measured

    def _share(self, scope: str) -> None:
        """Sums over a tensor are added over its shards; sums over the model, over all tensors as well."""
        if not self.items:
            return
        kinds: dict[Any, list[Item]] = {}
        for item in self.items:
            source = item.source
            sharded = _layout.is_sharded(source)
            kinds.setdefault((source.device_mesh, source.placements) if sharded else None, []).append(item)  # type: ignore[attr-defined]
        for items in kinds.values():
            stacked = torch.stack([item.sums.to(items[0].sums.device) for item in items])
            stacked = _layout.add_over_shards(stacked, items[0].source)
            for item, sums in zip(items, stacked, strict=True):
                item.sums = sums.to(item.sums.device)
        if scope == "model":
            total = torch.stack([item.sums.to(self.items[0].sums.device) for item in self.items]).sum(0)
            for item in self.items:
                item.sums = total.to(item.sums.device)

    def _refuse(self, p: Tensor) -> None:
        """Errors come before anything has moved."""
        assert p.grad is not None
        if p.grad.layout != torch.strided:
            raise ValueError(
                f"sparse gradients are not supported, got one for a parameter of shape {tuple(p.shape)}: "
                "use nn.Embedding(..., sparse=False), or torch.optim.SparseAdam for that parameter"
            )
        for one in self.optimizer.links:
            if one.transform.scope != "matrix":
                continue
            if p.ndim != 2 or p.is_complex():
                raise ValueError(
                    f"{one.label} needs a real matrix, got {p.dtype} of shape {tuple(p.shape)}: "
                    "give such parameters an optimizer of their own, optim.AdamW say"
                )
            if _layout.is_sharded(p):
                raise ValueError(
                    f"{one.label} needs whole matrices, got shard {tuple(_layout.local(p).shape)} of "
                    f"{tuple(p.shape)}: train these parameters under DDP, or leave them out of fully_shard"
                )

    def _item(self, at: int, group: dict[str, Any], index: int, p: Tensor) -> Item:
        optimizer = self.optimizer
        state = optimizer.slots_of(p)
        state["step"] += 1
        step = float(state["step"])
        place = optimizer._places.get(p)
        if place is None or not place.still_holds(p, state):
            place = optimizer._places[p] = Place.of(p, state)
        place.read()
        assert p.grad is not None
        grad = _layout.real(_layout.local(p.grad.detach()))
        packed, restart = self._packed(at, group, step, place.flat)
        if restart:
            for key, tensor in place.slots.items():
                if key != "kahan":
                    tensor.zero_()
        blank, seed = self._blanks(place.flat.device)
        if self.seeded:
            stream = (at * 4099 + index) * 65537 + int(step)
            seed = torch.tensor([stream, place.offset], device=place.flat.device)
        return Item(p, place, _layout.in_order_of(place.dense, grad), packed, seed, blank)

    def _packed(self, at: int, group: dict[str, Any], step: float, like: Tensor) -> tuple[Tensor, bool]:
        """The scalars for this group and step, and whether the state is zeroed first; made once for all."""
        key = (at, step, like.device)
        if key not in self.packs:
            wide = torch.float32 if like.device.type == "mps" else torch.float64
            packed = torch.tensor(self.optimizer._layout.pack(group, step), dtype=wide, device=like.device)
            restarts = (
                one.transform.restart(numbers(one, group, step))
                for one in self.optimizer.links
                if one.transform.restart
            )
            self.packs[key] = packed, any(restarts)
        return self.packs[key]

    def _blanks(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """What a pass without sums, or without noise, is given in their stead."""
        if device not in self.blanks:
            sums = torch.zeros(0, dtype=torch.float64, device=device)
            self.blanks[device] = sums, torch.zeros(2, dtype=torch.int64, device=device)
        return self.blanks[device]
