"""A chain made ready to run: which state each link keeps, which scalars it reads, where passes must end.

Consecutive transforms become one pass over memory. A transform that needs sums over a tensor or over the
model ends the pass before it, because its update needs sums that the whole pass produces.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from thalweg.optim.transform import Scalars, State, Transform

# Settings a group may carry besides hyper-parameters: torch's own and its schedulers'.
GROUP_KEYS = {
    "params",
    "param_names",
    "name",
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "max_momentum",
    "base_momentum",
    "swa_lr",
}


@dataclass(frozen=True)
class Link:
    """One transform in its place: its label, and the keys of its hyper-parameters and slots."""

    transform: Transform
    label: str
    hyper: Mapping[str, str]
    slots: Mapping[str, str]
    owned: tuple[str, ...]


def link(transforms: Sequence[Transform]) -> tuple[Link, ...]:
    """Name every link's hyper-parameters and slots; a name that two links share gets the label before it."""
    names = [name for transform in transforms for name in transform.hyper]
    labels: list[str] = []
    for transform in transforms:
        count = sum(label.split("_#")[0] == transform.name for label in labels) + 1
        labels.append(transform.name if count == 1 else f"{transform.name}_#{count}")
    labels = [label.replace("_#", "_") for label in labels]
    links: list[Link] = []
    for index, (transform, label) in enumerate(zip(transforms, labels, strict=True)):
        clash = {name for name in transform.hyper if names.count(name) > 1 or name in GROUP_KEYS}
        hyper = {name: f"{label}.{name}" if name in clash else name for name in transform.hyper}
        slots = {slot: f"{label}.{slot}" for slot in transform.slots}
        for slot in transform.borrows:
            for later, owner in zip(transforms[index + 1 :], labels[index + 1 :], strict=True):
                if slot in later.slots and slot not in later.borrows:
                    slots[slot] = f"{owner}.{slot}"
                    break
        owned = tuple(slot for slot in slots if slots[slot] == f"{label}.{slot}")
        links.append(Link(transform, label, hyper, slots, owned))
    return tuple(links)


class Layout:
    """Where each scalar lies in the packed tensor that a pass receives: lr, step, then each link's."""

    def __init__(self, links: Sequence[Link], group: Mapping[str, Any]):
        self.links = links
        self.fields: list[list[tuple[str, int, int | None]]] = []
        at = 2
        for one in links:
            place: list[tuple[str, int, int | None]] = []
            for name, value in self._values(one, group, 1):
                place.append((name, at, len(value) if isinstance(value, tuple) else None))
                at += len(value) if isinstance(value, tuple) else 1
            self.fields.append(place)

    def pack(self, group: Mapping[str, Any], step: float) -> list[float]:
        """The scalars of every link for one group and step, in order."""
        flat = [float(group["lr"]), float(step)]
        for one in self.links:
            for _, value in self._values(one, group, step):
                flat.extend(value) if isinstance(value, tuple) else flat.append(value)
        return flat

    @staticmethod
    def _values(one: Link, group: Mapping[str, Any], step: float) -> list[tuple[str, Any]]:
        k = numbers(one, group, step)
        derived = one.transform.scalars(k) if one.transform.scalars else {}
        return [(name, getattr(k, name)) for name in one.transform.hyper] + list(derived.items())

    def unpack(self, index: int, packed: Sequence[Tensor], sums: Sequence[Tensor]) -> Scalars:
        """The ``k`` of the link at ``index``: its scalars as 0-d tensors."""
        values = {"lr": packed[0], "step": packed[1], "sums": sums}
        for name, start, count in self.fields[index]:
            values[name] = packed[start] if count is None else packed[start : start + count]
        return Scalars(values)


def numbers(one: Link, group: Mapping[str, Any], step: float) -> Scalars:
    """The ``k`` of a link as plain floats."""
    hyper = {name: group[key] for name, key in one.hyper.items()}
    plain = {
        name: tuple(map(float, v)) if isinstance(v, (tuple, list)) else float(v) for name, v in hyper.items()
    }
    return Scalars({"lr": float(group["lr"]), "step": step, **plain})


@dataclass(frozen=True)
class Pass:
    """Some consecutive links, run in one sweep over a tensor.

    Attributes:
        first, last: the slice of links that it runs.
        measures: the link whose sums it produces on the way out, or None for the pass that moves the weights.
        slots: the state keys that it reads, in the order in which it is given their tensors.
        shaped: whether the tensors keep their 2-D shape instead of being flattened.
    """

    links: tuple[Link, ...]
    layout: Layout
    first: int
    last: int
    measures: int | None
    slots: tuple[str, ...]
    shaped: bool

    def run(
        self, packed: Sequence[Tensor], sums: Sequence[Tensor], u: Tensor, p: Tensor, slots: Sequence[Tensor]
    ):
        """Give the update behind these links, the new values of the slots and the sums for the next pass."""
        values = dict(zip(self.slots, slots, strict=True))
        for index in range(self.first, self.last):
            one = self.links[index]
            state = State({name: values[key] for name, key in one.slots.items()})
            u, state = one.transform.update(u, p, state, self.layout.unpack(index, packed, sums))
            for name in one.owned:
                values[one.slots[name]] = state.slots[name]
        if self.measures is None:
            return u, tuple(values[key] for key in self.slots), None
        one = self.links[self.measures]
        state = State({name: values[key] for name, key in one.slots.items() if key in values})
        assert one.transform.measure is not None
        measured = one.transform.measure(u, p, state, self.layout.unpack(self.measures, packed, ()))
        return u, tuple(values[key] for key in self.slots), torch.stack([m.double() for m in measured])


def passes(links: tuple[Link, ...], layout: Layout) -> tuple[Pass, ...]:
    """Cut the chain before every transform that measures, and around every one that needs a matrix."""
    cuts = {0, len(links)}
    for index, one in enumerate(links):
        if one.transform.measure:
            cuts.add(index)
        if one.transform.scope == "matrix":
            cuts |= {index, index + 1}
    edges = sorted(cuts)
    if links and links[0].transform.measure:
        edges.insert(0, 0)
    found = []
    for first, last in itertools.pairwise(edges if len(edges) > 1 else [0, 0]):
        follows = links[last] if last < len(links) else None
        measures = last if follows is not None and follows.transform.measure else None
        used = [key for one in links[first:last] for key in one.slots.values()]
        if measures is not None:
            used += links[measures].slots.values()
        shaped = any(one.transform.scope == "matrix" for one in links[first:last])
        found.append(Pass(links, layout, first, last, measures, tuple(dict.fromkeys(used)), shaped))
    return tuple(found)


def rebuilt(transform: Transform, hyper: Mapping[str, Any]) -> Transform:
    """The same transform with other hyper-parameters: goes through the part's own checks."""
    from thalweg.optim.transform import PARTS

    if transform.name not in PARTS:
        return replace(transform, hyper={**transform.hyper, **hyper})
    return PARTS[transform.name](**{**transform.arguments, **hyper})
