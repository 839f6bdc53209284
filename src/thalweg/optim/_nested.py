"""A transform inside another, which runs it on a tensor of its own making."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from thalweg.optim._kernel import made
from thalweg.optim._loop import Work, entries
from thalweg.optim.transform import Scalars, State, Transform

ALONE = ("element", "rows", "tensor", "whole")
Shape = Callable[[Tensor, Scalars], Tensor]


def check_inner(name: str, inner: Any, scopes: Collection[str] = ALONE, *, weights: bool = True) -> Transform:
    """Raise ValueError unless ``inner`` is a transform of one of ``scopes`` that needs no other link.

    Without ``weights``, as inside a subspace, it must not decay them.
    """
    if not isinstance(inner, Transform):
        raise ValueError(f"{name} must be a transform such as optim.adam(), got {inner!r}")
    if inner.scope not in scopes or inner.borrows or inner.restart:
        raise ValueError(f"{name} must be of scope {' or '.join(scopes)} and work by itself, got {inner!r}")
    if not weights and (inner.name == "decay" or inner.arguments.get("weight_decay")):
        raise ValueError(
            f"{name} must not decay weights inside a subspace, got {inner!r}: put decay() behind"
        )
    return inner


def inner_slots(inner: Transform, template: Shape) -> dict[str, Shape]:
    """First values of the inner transform's state, given the kind of tensor on which it will run."""

    def fresh(slot: str) -> Shape:
        own = inner.fresh.get(slot)
        if own is None:
            return lambda p, k: torch.zeros_like(template(p, k))
        return lambda p, k: own(template(p, k), k)

    return {slot: fresh(slot) for slot in inner.slots}


def run_inner(
    inner: Transform,
    u: Tensor,
    p: Tensor | None,
    state: State,
    k: Scalars,
    owned: bool = False,
) -> tuple[Tensor, State]:
    """One update of the inner transform on ``u``, whose sums are taken here and now.

    With ``owned`` it may write to ``u``. An element-wise one works in place, in one compiled loop or
    eagerly a few rows at a time.
    """
    kept = [state.slots[slot] for slot in inner.slots]
    if inner.scope == "element" and all(one.shape == u.shape for one in kept):
        out = u if owned else torch.empty_like(u)
        entries(inner.name, made(inner), element_work(inner), k, out, None if owned else u, p, *kept)
        return out, state
    further: dict[str, Any] = {"gradient": u, "owned": owned}
    if inner.measure is not None:
        seen = u.reshape(len(u), -1) if inner.scope == "rows" else u
        measured = inner.measure(seen, p, state, Scalars({**k.values, **further}))
        further["sums"] = tuple(one.double() for one in measured)
    update, new = inner.update(u, p, state, Scalars({**k.values, **further}))
    taken = any(update is one for one in new.slots.values()) or (update is u and not owned)
    return (update.clone() if taken else update), new  # the caller may write to it


def diagonal_of(inner: Transform, state: State, k: Scalars) -> Any:
    """What ``inner`` multiplies the gradient of ``k.parameter`` by; ones for momentum, None if unknown."""
    if inner.precondition is None:
        return None if inner.stability is None else torch.ones_like(k.parameter)
    return inner.precondition(state, k)


def innermost(transform: Transform) -> Transform:
    """What is left when everything that runs another transform inside is taken away."""
    while isinstance(inside := transform.arguments.get("inner"), Transform):
        transform = inside
    return transform


def element_work(inner: Transform) -> Work:
    """The inner transform in place: ``out`` becomes the update of ``u`` (of ``out``, if there is none)."""

    def work(k: Scalars, out: Tensor, u: Tensor | None, p: Tensor | None, *slots: Tensor) -> None:
        u = out if u is None else u
        stored = [slot.to(u.dtype) for slot in slots]
        spare = all(one is slot for one, slot in zip(stored, slots, strict=True))
        state = State(dict(zip(inner.slots, stored, strict=True)), spare)
        update, new = inner.update(u, p, state, Scalars({**k.values, "gradient": u}))
        for name, slot, old in zip(inner.slots, slots, stored, strict=True):
            if new.slots[name] is not old:
                slot.copy_(new.slots[name])
        out.copy_(update)

    return work
