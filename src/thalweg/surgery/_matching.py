"""Weight matching: permutations under which two models' weights have the largest inner product (2209.04836).

Coordinate ascent over groups of units. Units of one order are one assignment problem. Units under a parent
(what is inside each head) are matched for every pair of parents, and the parents by what that gives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from thalweg.surgery._assignment import best
from thalweg.surgery._orders import Permutations, Piece, Symmetry

RELATIVE = 1e-6  # what counts as progress, of the value reached: below are rounding errors of float32
ROUNDS = 3  # passes over several kinds of units inside one pair of parents


@dataclass(frozen=True)
class Match:
    """Permutations found, sweeps made, and whether nothing moved any more."""

    perms: Permutations
    sweeps: int
    settled: bool


def total(value: Tensor, order: Tensor) -> float:
    return value.gather(1, order[:, None]).sum(dtype=torch.float64).item()


class Matching:
    """The two models' weights, cut into pieces, and the ascent over one group of units at a time."""

    def __init__(
        self,
        symmetry: Symmetry,
        pieces: Sequence[Piece],
        reference: Mapping[str, Tensor],
        model: Mapping[str, Tensor],
    ):
        self.symmetry, self.pieces = symmetry, list(pieces)
        self.ours = [_block(piece, reference[piece.name]) for piece in pieces]
        self.theirs = [_block(piece, model[piece.name]) for piece in pieces]
        self.led: dict[tuple[int, int], tuple[Tensor, Piece, Tensor]] = {}
        self.still: dict[int, Tensor] = {}
        self.heads = [label for label, one in enumerate(symmetry.units) if one.parent is None]
        self.near = {
            label: [i for i, piece in enumerate(self.pieces) if self.family(label) & {*piece.labels}]
            for label in self.heads
        }

    def family(self, label: int) -> set[int]:
        return {label, *self.symmetry.children(label)}

    def run(self, generator: torch.Generator, sweeps: int, held: Collection[int] = ()) -> Match:
        """Until no group but those ``held`` moves, or ``sweeps`` passes, each in a random order.

        Only in the first do those that most weights carry come first.
        """
        perms = self.symmetry.identity()
        waiting = set(self.heads) - set(held)
        for sweep in range(sweeps):
            order = [self.heads[at] for at in torch.randperm(len(self.heads), generator=generator)]
            if not sweep:
                # What many weights carry, such as a residual stream, would wake up all the others again.
                order.sort(key=lambda label: -len(self.near[label]))
            for label in order:
                # A group is where it wants to be until one that it meets in a weight moves.
                if label not in waiting:
                    continue
                waiting.discard(label)
                if self.improve(label, perms):
                    waiting |= self.neighbours(label) - set(held)
            if not waiting:
                return Match(perms, sweep + 1, True)
        return Match(perms, sweeps, False)

    def neighbours(self, label: int) -> set[int]:
        """Heads of the groups that the group of ``label`` meets in a weight."""
        units = self.symmetry.units
        found = set()
        for i in self.near[label]:
            labels = [one for one in self.pieces[i].labels if one is not None]
            heads = [one if units[one].parent is None else units[one].parent for one in labels]
            found |= {head for head in heads if head is not None and head != label}
            if heads.count(label) > 1 and not self.symmetry.children(label):
                found.add(label)  # twice in one weight: its own move changes what it wants
        return found

    def improve(self, label: int, perms: Permutations) -> bool:
        """Move one group to where the others want it; whether it moved."""
        if self.symmetry.children(label):
            return self._improve_family(label, perms)
        value = self._value(label, perms)
        order = best(value)
        before, after = total(value, perms[label]), total(value, order)
        if after - before <= RELATIVE * abs(after):
            return False
        if any(self.pieces[i].labels.count(label) > 1 for i in self.near[label]):
            # The value was that of one place with the other held: it may promise too much.
            old, perms[label] = perms[label], order
            gained = self._inner(label, perms)
            perms[label] = old
            if gained - self._inner(label, perms) <= RELATIVE * abs(gained):
                return False
        perms[label] = order
        return True

    def objective(self, perms: Permutations) -> float:
        """Inner product of all weights that carry a group."""
        return sum(self._product(i, perms) for i in range(len(self.pieces)))

    def _product(self, i: int, perms: Permutations) -> float:
        theirs = self.symmetry.permuted(self.pieces[i], self.theirs[i], perms)
        return torch.sum(self.ours[i] * theirs, dtype=torch.float64).item()

    def _inner(self, label: int, perms: Permutations) -> float:
        return sum(self._product(i, perms) for i in self.near[label])

    def _value(self, label: int, perms: Permutations) -> Tensor:
        """Entry (i, j): inner product with all that unit i of the reference, and j of the model, carries."""
        size = self.symmetry.units[label].size
        value = self._still(label).clone()
        for i in self.near[label]:
            if _alone(self.pieces[i], label):
                continue
            for d in (d for d, one in enumerate(self.pieces[i].labels) if one == label):
                ours, piece, theirs = self._led_by(i, d)
                other = self.symmetry.permuted(piece, theirs, perms, leave=(0,))
                value.addmm_(ours, other.reshape(size, -1).T)
        return value.double()

    def _led_by(self, i: int, d: int) -> tuple[Tensor, Piece, Tensor]:
        """Block ``i`` with its axis ``d`` first: the reference's as a matrix, and the model's."""
        if (i, d) not in self.led:
            piece = self.pieces[i]
            axes = [d, *(other for other in range(len(piece.labels)) if other != d)]
            moved = replace(
                piece, shape=tuple(piece.shape[a] for a in axes), labels=tuple(piece.labels[a] for a in axes)
            )
            ours = self.ours[i].movedim(d, 0).reshape(piece.shape[d], -1)
            # In this order once and for all: to permute it is then to copy runs.
            self.led[i, d] = ours, moved, self.theirs[i].movedim(d, 0).contiguous()
        return self.led[i, d]

    def _still(self, label: int) -> Tensor:
        """The part of the value that no other group has a say in."""
        if label not in self.still:
            size = self.symmetry.units[label].size
            near = [i for i in self.near[label] if _alone(self.pieces[i], label)]
            ours, theirs = (
                [side[i].movedim(self.pieces[i].labels.index(label), 0).reshape(size, -1) for i in near]
                for side in (self.ours, self.theirs)
            )
            dtype = self.ours[self.near[label][0]].dtype if self.near[label] else None
            nothing = torch.zeros(size, size, dtype=dtype)
            self.still[label] = torch.cat(ours, 1) @ torch.cat(theirs, 1).T if near else nothing
        return self.still[label]

    def _improve_family(self, label: int, perms: Permutations) -> bool:
        inside = self.symmetry.children(label)
        family, outside = self.family(label), dict(perms)
        for one in family:
            del outside[one]
        size = self.symmetry.units[label].size
        alone = torch.zeros(size, size, dtype=torch.float64)
        single = {one: _zeros(size, self.symmetry.units[one].size) for one in inside}
        several: list[tuple[list[int], Tensor, Tensor]] = []
        for i in self.near[label]:
            piece = self.pieces[i]
            axes = [piece.labels.index(label)]
            axes += [d for d, one in enumerate(piece.labels) if one in inside]
            ours, theirs = (
                block.movedim(axes, tuple(range(len(axes))))
                for block in (self.ours[i], self.symmetry.permuted(piece, self.theirs[i], outside))
            )
            kinds = [int(piece.labels[d] or 0) for d in axes[1:]]
            if not kinds:
                alone += ours.reshape(size, -1) @ theirs.reshape(size, -1).T
            elif len(kinds) == 1:
                n = single[kinds[0]].shape[-1]
                joint = ours.reshape(size * n, -1) @ theirs.reshape(size * n, -1).T
                single[kinds[0]] += joint.reshape(size, n, size, n).transpose(1, 2)
            else:
                several.append((kinds, ours, theirs))
        before = {one: perms[one] for one in inside}
        found = {one: torch.empty(size, *single[one].shape[1:3], dtype=torch.long) for one in inside}
        value = alone.clone()
        now = alone.gather(1, perms[label][:, None])[:, 0].clone()
        for g in range(size):
            for h in range(size):
                mine = h == int(perms[label][g])
                start = {one: before[one][g] if mine else None for one in inside}
                pair = {one: single[one][g, h] for one in inside}
                rest = [(kinds, ours[g], theirs[h]) for kinds, ours, theirs in several]
                orders, gained, was = _pair(pair, rest, start)
                value[g, h] += gained
                if mine:
                    now[g] += was
                for one in inside:
                    found[one][g, h] = orders[one]
        order = best(value)
        after = total(value, order)
        if after - now.sum().item() <= RELATIVE * abs(after):
            return False
        perms[label] = order
        for one in inside:
            perms[one] = found[one][torch.arange(size), order]
        return True


def _alone(piece: Piece, label: int) -> bool:
    return [one for one in piece.labels if one is not None] == [label]


def _zeros(size: int, inside: int) -> Tensor:
    return torch.zeros(size, size, inside, inside, dtype=torch.float64)


def _pair(
    single: dict[int, Tensor],
    several: list[tuple[list[int], Tensor, Tensor]],
    start: dict[int, Tensor | None],
) -> tuple[dict[int, Tensor], float, float]:
    """Orders inside one pair of parents, their value, and that of ``start`` (the orders now, if known)."""
    orders = {
        one: torch.arange(len(value)) if (known := start[one]) is None else known
        for one, value in single.items()
    }

    def joint() -> float:
        return sum(
            torch.sum(ours * _ordered(theirs, kinds, orders), dtype=torch.float64).item()
            for kinds, ours, theirs in several
        )

    was = sum(total(value, orders[one]) for one, value in single.items()) + joint()
    reached = was
    for _ in range(ROUNDS if several else 1):
        for one, value in single.items():
            wanted = value
            for kinds, ours, theirs in several:
                if one in kinds:
                    d, n = kinds.index(one), len(value)
                    held = {k: order for k, order in orders.items() if k != one}
                    other = _ordered(theirs, kinds, held)
                    wanted = wanted + ours.movedim(d, 0).reshape(n, -1) @ other.movedim(d, 0).reshape(n, -1).T
            orders[one] = best(wanted)
        value_now = sum(total(value, orders[one]) for one, value in single.items()) + joint()
        gain, reached = value_now - reached, max(value_now, reached)
        if gain <= RELATIVE * abs(value_now):
            break
    return orders, reached, was


def _ordered(block: Tensor, kinds: list[int], orders: Mapping[int, Tensor]) -> Tensor:
    for d, one in enumerate(kinds):
        if one in orders:
            block = block.index_select(d, orders[one])
    return block


def _block(piece: Piece, tensor: Tensor) -> Tensor:
    """In float32 at least, and on the CPU, where assignments are solved."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return piece.of(tensor.detach().to("cpu", wide)).contiguous()
