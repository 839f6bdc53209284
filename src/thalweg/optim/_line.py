"""The way of one kind of parameter through a chain: its links, its passes in stages, its state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from thalweg.optim import _layout
from thalweg.optim._chain import Layout, Link, numbers, route
from thalweg.optim._fleet import fleet
from thalweg.optim._kernel import Kernel, compiled, eager, shaped
from thalweg.optim._pass import Pass, cut, gate

HALF = (torch.bfloat16, torch.float16)


class Line:
    """What all parameters share that go through the same links.

    Attributes:
        links: with the slots that each reads and owns.
        stages: passes with their kernels; only between two stages may sums have to be shared.
        other: keys of the state that is not shaped like the parameter.
        fleet: the last stage for many parameters at once, if it can be taken so.
        gate, ungated: what asks in each step whether a link applies, and the way if it does not.
        known: shapes that have gone both ways.
        sure: for how many more steps each parameter need not ask.
        rows: whether some pass needs rows that lie in memory one after the other.
        packs: whether several parameters may run as one, end to end.
        members: the parameters that go this way, in order.
        whole: the first link that cannot work on a part of a tensor, if there is one.
        counts: keys of whole hyper-parameters, such as ranks, that the state's shapes may depend on.
    """

    def __init__(
        self,
        links: Sequence[Link],
        hops: tuple[int, ...],
        group: Mapping[str, Any],
        compiles: bool,
        rounding: str,
        sharded: bool,
    ):
        self.links = route(links, hops)
        self.members: dict[Tensor, int] = {}
        self.layout = Layout(self.links, group)
        parts = cut(self.links, self.layout)
        self.stages: list[list[tuple[Pass, Kernel]]] = [[]]
        made = compiled if compiles else eager
        for part in parts:
            part = replace(part, adds_up=part.wants_totals and compiles and not sharded)
            whole = part.view == "whole"
            # Moving the weights by what is there already is one operation of torch: nothing to compile.
            single = part.first == part.last and part.writes and rounding == "none"
            kernel = (
                shaped(part, rounding, compiles) if whole else (eager if single else made)(part, rounding)
            )
            self.stages[-1].append((part, kernel))
            if part.measures is not None:
                self.stages.append([])
        self.other = frozenset(
            one.slots[slot] for one in self.links for slot in one.owned if slot in one.transform.fresh
        )
        self.fleet = fleet(self.stages[-1])
        gated = next((at for at, one in enumerate(self.links) if one.transform.gate), None)
        self.gate: tuple[Pass, Kernel] | None = None
        self.ungated: Line | None = None
        self.known: set[torch.Size] = set()
        self.sure: dict[Tensor, int] = {}
        if gated is not None and not sharded:
            asked = gate(self.links, self.layout, gated)
            self.gate = asked, made(asked, rounding)
            further = (*hops[:gated], hops[gated] + 1, *hops[gated + 1 :])
            self.ungated = Line(links, further, group, compiles, rounding, sharded)
            self.ungated.members = self.members
        self.rows = any(part.view == "rows" for part in parts)
        scopes = {one.transform.scope for one in self.links}
        self.packs = scopes <= {"element", "model"} and not self.other and rounding != "stochastic"
        self.counts = tuple(
            key
            for one in self.links
            for name, key in one.hyper.items()
            if one.transform.fresh and type(one.transform.hyper[name]) is int
        )
        self.whole = next((one for one in self.links if not one.transform.shards), None)

    def restarts(self, group: Mapping[str, Any], step: float) -> bool:
        """Whether some link wants the state zeroed before this step."""
        tests = [(one, one.transform.restart) for one in self.links]
        return any(test(numbers(one, group, step)) for one, test in tests if test is not None)

    def kept(self) -> set[str]:
        """The keys of the state that a parameter keeps, besides ``step``."""
        return {one.slots[slot] for one in self.links for slot in one.owned}

    def fresh(self, p: Tensor, group: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Tensor]:
        """The state of ``p`` before its first step; ``dtype`` is that of the slots shaped like ``p``."""
        kept = None if p.is_complex() else dtype
        like = torch.empty_like(p.detach(), dtype=kept or (torch.float32 if p.dtype in HALF else p.dtype))
        state = {}
        for one in self.links:
            k = numbers(one, group, 1)
            for slot in one.owned:
                make = one.transform.fresh.get(slot)
                state[one.slots[slot]] = make(like, k) if make else torch.zeros_like(like)
        return state

    def refuse(self, p: Tensor) -> None:
        """Raise ValueError if ``p`` cannot go this way."""
        for one in self.links:
            if one.transform.scope == "matrix" and (p.ndim != 2 or p.is_complex()):
                raise ValueError(
                    f"{one.label} needs a real matrix, got {p.dtype} of shape {tuple(p.shape)}: "
                    "give such parameters an optimizer of their own, optim.AdamW say"
                )
        if self.whole is not None and _layout.is_sharded(p):
            raise ValueError(
                f"{self.whole.label} needs whole tensors, got shard {tuple(_layout.local(p).shape)} of "
                f"{tuple(p.shape)}: train these parameters under DDP, or leave them out of fully_shard"
            )
