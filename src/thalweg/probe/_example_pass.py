"""One forward and one backward pass from which per-example sums are read, layer by layer.

The backward pass computes no parameter's gradient; what it brings to a layer is reduced there and dropped.
Every layer's result is compared with the plain gradients of two examples that are run by themselves, so that
a rule that does not fit a model costs time and never a wrong number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.utils.checkpoint import CheckpointError

from thalweg.probe._example_batch import (
    LossFn,
    count,
    losses_of,
    taken,
    trainable,
    undisturbed,
    unwrapped,
)
from thalweg.probe._example_check import Few, alike
from thalweg.probe._example_forms import Form
from thalweg.probe._example_graph import Border, Graph, GraphsDiffer, Node
from thalweg.probe._example_nodes import HANDLERS, form_at
from thalweg.probe._example_prefix import carried
from thalweg.probe._example_reduce import KINDS, Sums, Wanted, joined, reduce, reduce_nothing
from thalweg.probe._example_shared import added
from thalweg.probe._example_slow import written_out


def example_sums(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    wanted: Wanted,
    *,
    chunk_size: int | None = None,
    verify: bool = True,
) -> Sums:
    """Everything ``wanted`` of the gradients of ``loss_fn(model, batch)``, example by example."""
    model = unwrapped(model)
    params = trainable(model)
    examples = count(batch)
    size = min(chunk_size or examples, examples)
    if wanted.own_direction and size < examples:
        first = example_sums(model, batch, loss_fn, Wanted(totals=True), chunk_size=chunk_size, verify=verify)
        direction = {name: total / examples for name, total in first.totals.items()}
        wanted = replace(wanted, own_direction=False, direction=direction)
    with undisturbed(model):
        few = Few(model, batch, loss_fn, list(params.values()), {size, examples % size}, verify)
        chunks: list[Sums] = []
        unknown: set[str] = set()
        for start in range(0, examples, size):
            part = taken(batch, examples, slice(start, start + size))
            got, missed, moved = _pass(model, part, loss_fn, params, wanted, few.losses)
            if moved and verify:
                missed |= _misplaced(model, part, loss_fn, params, got, few)
            chunks.append(got)
            unknown |= missed
        sums = joined(chunks)
        if verify:
            few.compare_losses(sums.losses, examples)
            known = {name: norms for name, norms in sums.norms.items() if name not in unknown}
            unknown |= few.disagreeing(known, list(params))
        sums.slow = tuple(name for name in params if name in unknown)
        if sums.slow:
            slow = {name: params[name] for name in sums.slow}
            found = written_out(model, batch, loss_fn, slow, wanted, chunk_size)
            for kind in KINDS:
                getattr(sums, kind).update(getattr(found, kind))
    # In one order everywhere, so that processes that add them up talk about the same parameter.
    for kind in KINDS:
        have = getattr(sums, kind)
        setattr(sums, kind, {name: have[name] for name in params if name in have})
    return sums


def _pass(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    params: Mapping[str, Tensor],
    wanted: Wanted,
    few: Tensor,
    weights: Tensor | None = None,
) -> tuple[Sums, set[str], bool]:
    """Sums of one chunk, parameters without any, and whether examples may have changed places inside."""
    losses = losses_of(model, batch, loss_fn, count(batch))
    sums = Sums(losses.detach())
    graph = _graph(model, batch, loss_fn, params, losses, few)
    if graph is None:
        return sums, set(params), False
    layers = _Layers(graph, params, wanted, sums)
    handles = [
        node.register_prehook(lambda grads, node=node: layers.hear(node, grads[0]))
        for node in layers.waiting
        if node not in graph.sources
    ]
    try:
        whole = losses.sum() if weights is None else losses @ weights.to(losses)
        edges = [GradientEdge(node, 0) for node in graph.sources]
        if edges:
            heard = torch.autograd.grad(whole, edges, allow_unused=True)
            for node, grad in zip(graph.sources, heard, strict=True):
                layers.hear(node, grad)
    except CheckpointError:
        # What is recomputed during the backward pass may be looked at only once.
        return Sums(losses.detach()), set(params), False
    finally:
        for handle in handles:  # a hook that knows its node would keep the graph alive
            handle.remove()
    layers.finish()
    return sums, layers.unknown, graph.moved


def _graph(
    model: nn.Module, batch: Any, loss_fn: LossFn, params: Mapping[str, Tensor], losses: Tensor, few: Tensor
) -> Graph | None:
    try:
        return Graph(losses, few, list(params.values()), HANDLERS)
    except GraphsDiffer:
        # A model may do without a mask that masks nothing: compare with examples that are masked alike.
        some = taken(batch, len(losses), alike(batch, len(losses), len(few)))
        few = losses_of(model, some, loss_fn, len(few))
    try:
        return Graph(losses, few, list(params.values()), HANDLERS)
    except GraphsDiffer:
        return None


def _misplaced(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    params: Mapping[str, Tensor],
    found: Sums,
    few: Few,
) -> set[str]:
    """Parameters whose gradients were credited to other examples than whose they are.

    With each loss times a number of its own, each norm must grow by that number.
    """
    source = torch.Generator().manual_seed(0)
    numbers = (1 + torch.rand(len(found.losses), generator=source)).to(found.losses.device)
    scaled, missed, _ = _pass(model, batch, loss_fn, params, Wanted(), few.losses, numbers)
    known = {name: norms for name, norms in found.norms.items() if name in scaled.norms}
    whole = torch.stack([norms.double() for norms in known.values()]).sum(0).sqrt() if known else None
    for name, norms in known.items():
        once, again = norms.double().sqrt(), scaled.norms[name].double().sqrt()
        allowed = few.tolerance * (again + few.tolerance * whole)
        if bool(((once * numbers - again).abs() > allowed).any()):
            missed.add(name)
    return missed


class _Layers:
    """Collects what arrives at the borders, and reduces a parameter as soon as all of it is there."""

    def __init__(self, graph: Graph, params: Mapping[str, Tensor], wanted: Wanted, sums: Sums) -> None:
        self.graph, self.wanted, self.sums = graph, wanted, sums
        self.names, self.params = list(params), list(params.values())
        self.unknown: set[str] = set()
        self.waiting: dict[Node, list[Border]] = {}
        self.missing = [0] * len(params)
        self.pieces: list[list[Form]] = [[] for _ in params]
        for border in graph.borders:
            if border.node.name() not in HANDLERS:
                self.unknown |= {self.names[t] for t in border.targets}
        for border in graph.borders:
            useful = any(self.names[t] not in self.unknown for t in border.targets)
            if border.node.name() in HANDLERS and useful:
                self.waiting.setdefault(border.node, []).append(border)
                for target in border.targets:
                    self.missing[target] += 1

    @torch.no_grad()
    def hear(self, node: Node, grad: Tensor | None) -> None:
        for border in self.waiting.pop(node, ()):
            form = None if grad is None else form_at(self.graph, border, grad)
            for target in border.targets:
                self.missing[target] -= 1
                if self.names[target] in self.unknown:
                    continue
                if form is not None:
                    shape = self.params[target].shape
                    self.pieces[target].append(carried(border, form, self.params[target], shape))
                elif grad is not None:
                    self.unknown.add(self.names[target])
                    self.pieces[target] = []
                if not self.missing[target]:
                    self._reduce(target)

    @torch.no_grad()
    def finish(self) -> None:
        """What no gradient reached has none."""
        for target, name in enumerate(self.names):
            if name not in self.unknown and name not in self.sums.norms:
                self._reduce(target)

    def _reduce(self, target: int) -> None:
        name, pieces = self.names[target], self.pieces[target]
        self.pieces[target] = []
        if name in self.unknown:
            return
        if pieces:
            reduce(added(pieces), name, self.wanted, self.sums)
        else:
            reduce_nothing(self.params[target], self.graph.examples, name, self.wanted, self.sums)
