"""A chain made ready to run: which state each link keeps and which scalars it reads, for each parameter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from thalweg.optim.transform import PARTS, Scalars, State, Transform

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


def _unchanged(u: Tensor, p: Tensor, state: State, k: Scalars) -> tuple[Tensor, State]:
    return u, state


# What a parameter goes through where a link leaves it alone.
NOTHING = Transform("element", _unchanged, name="nothing")


@dataclass(frozen=True)
class Link:
    """One transform in its place: its label, and the keys of its hyper-parameters and slots.

    ``slots`` holds what it reads, ``owned`` the slots among them that are its own and not borrowed.
    """

    transform: Transform
    label: str
    hyper: Mapping[str, str]
    slots: Mapping[str, str] = field(default_factory=dict)
    owned: tuple[str, ...] = ()


def link(transforms: Sequence[Transform]) -> tuple[Link, ...]:
    """Name every link and its hyper-parameters; a name that two links share gets the label before it."""
    names = [name for transform in transforms for name in transform.hyper if name not in transform.follows]
    labels: list[str] = []
    for transform in transforms:
        count = sum(label.split("_#")[0] == transform.name for label in labels) + 1
        labels.append(transform.name if count == 1 else f"{transform.name}_#{count}")
    links: list[Link] = []
    for transform, label in zip(transforms, (label.replace("_#", "_") for label in labels), strict=True):
        clash = {name for name in transform.hyper if names.count(name) > 1 or name in GROUP_KEYS}
        hyper = {name: f"{label}.{name}" if name in clash else name for name in transform.hyper}
        for name in transform.follows:
            earlier = (one.hyper[name] for one in reversed(links) if name in one.hyper)
            hyper[name] = next(earlier, f"{label}.{name}")
        links.append(Link(transform, label, hyper))
    return route(links, [0] * len(links))


def applied(links: Sequence[Link], p: Tensor, group: Mapping[str, Any]) -> tuple[int, ...]:
    """For each link, how many times ``otherwise`` is followed to a transform that applies to ``p``."""
    hops = []
    for one in links:
        k, found = numbers(one, group, 1), 0
        transform: Transform | None = one.transform
        while transform is not None and transform.applies is not None and not transform.applies(p, k):
            transform, found = transform.otherwise, found + 1
        hops.append(found)
    return tuple(hops)


def route(links: Sequence[Link], hops: Sequence[int]) -> tuple[Link, ...]:
    """The links that a parameter goes through, with the slots that each of them then owns or borrows."""
    chosen = []
    for one, count in zip(links, hops, strict=True):
        transform = one.transform
        for _ in range(count):
            transform = transform.otherwise or NOTHING
        hyper = {name: one.hyper[name] for name in transform.hyper}
        chosen.append(Link(transform, one.label, hyper))
    routed = []
    for index, one in enumerate(chosen):
        slots = {slot: f"{one.label}.{slot}" for slot in one.transform.slots}
        for slot in one.transform.borrows:
            for later in chosen[index + 1 :]:
                kept = later.transform
                if slot in kept.slots and slot not in kept.borrows and slot not in kept.fresh:
                    slots[slot] = f"{later.label}.{slot}"
                    break
        owned = tuple(slot for slot in slots if slots[slot] == f"{one.label}.{slot}")
        routed.append(replace(one, slots=slots, owned=owned))
    return tuple(routed)


class Layout:
    """Where each scalar lies in the packed tensor that a pass receives: lr, step, then each link's."""

    def __init__(self, links: Sequence[Link], group: Mapping[str, Any]):
        self.links = links
        self.fields: list[list[tuple[str, int, int | None]]] = []
        at = 2
        for one in links:
            place: list[tuple[str, int, int | None]] = []
            for name, value in _own(one, group, 1):
                place.append((name, at, len(value) if isinstance(value, tuple) else None))
                at += len(value) if isinstance(value, tuple) else 1
            self.fields.append(place)

    def pack(self, group: Mapping[str, Any], step: float) -> list[float]:
        """The scalars of every link for one group and step, in order."""
        flat = [float(group["lr"]), float(step)]
        for one in self.links:
            for _, value in _own(one, group, step):
                flat.extend(value) if isinstance(value, tuple) else flat.append(value)
        return flat

    def unpack(self, index: int, packed: Sequence[Any], sums: Sequence[Tensor]) -> Scalars:
        """The ``k`` of the link at ``index``: its scalars as they lie in ``packed``."""
        values = {"lr": packed[0], "step": packed[1], "sums": sums}
        for name, start, count in self.fields[index]:
            values[name] = packed[start] if count is None else packed[start : start + count]
        return Scalars(values)


def numbers(one: Link, group: Mapping[str, Any], step: float) -> Scalars:
    """The ``k`` of a link as plain floats, without what its ``scalars`` adds."""
    hyper = {name: group[key] for name, key in one.hyper.items()}
    plain = {
        name: tuple(map(float, v)) if isinstance(v, (tuple, list)) else float(v) for name, v in hyper.items()
    }
    return Scalars({"lr": float(group["lr"]), "step": step, **plain})


def _own(one: Link, group: Mapping[str, Any], step: float) -> list[tuple[str, Any]]:
    """A link's hyper-parameters and derived scalars, by name."""
    k = numbers(one, group, step)
    derived = one.transform.scalars(k) if one.transform.scalars else {}
    return [(name, getattr(k, name)) for name in one.transform.hyper] + list(derived.items())


def rebuilt(transform: Transform, hyper: Mapping[str, Any]) -> Transform:
    """The same transform with other hyper-parameters, its own or of one inside it: the parts check them."""
    if transform.name not in PARTS:
        return replace(transform, hyper={**transform.hyper, **hyper})
    make = PARTS[transform.name]
    own = inspect.signature(make).parameters
    arguments = {**transform.arguments, **{name: value for name, value in hyper.items() if name in own}}
    inside = {name: value for name, value in hyper.items() if name not in own}
    for name, value in arguments.items():
        if isinstance(value, Transform):
            arguments[name] = rebuilt(value, {key: inside[key] for key in inside.keys() & value.hyper.keys()})
    return make(**arguments)
