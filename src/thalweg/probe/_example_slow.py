"""Per-example gradients written out, for what has no shorter way: ``torch.func.vmap``, or one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from thalweg.probe._example_batch import LossFn, changed, count, losses_of, taken
from thalweg.probe._example_forms import Dense
from thalweg.probe._example_reduce import Sums, Wanted, joined, reduce
from thalweg.probe._graphs import dense

# Entries of explicit gradients held at a time.
HELD = 2**24


class _Losses(nn.Module):
    """The loss as a module, so that its model can be run with other parameters."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


def _materialised(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    params: Mapping[str, Tensor],
    chunk_size: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """The gradients of some examples after the other, by name, (b, *shape)."""
    examples = count(batch)
    entries = sum(p.numel() for p in params.values())
    step = min(chunk_size or examples, examples, max(1, HELD // entries))
    work = _vmapped
    for start in range(0, examples, step):
        some = taken(batch, examples, slice(start, start + step))
        try:
            found = work(model, some, loss_fn, params)
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            # Control flow that depends on data, or an operation without a rule.
            if work is _one_by_one:
                raise
            work = _one_by_one
            found = work(model, some, loss_fn, params)
        yield found


def _vmapped(
    model: nn.Module, batch: Any, loss_fn: LossFn, params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    examples = count(batch)
    host = _Losses(model, loss_fn)
    tensors: list[Tensor] = []
    changed(batch, lambda t: tensors.append(t) if t.dim() and t.shape[0] == examples else None)

    def loss(chosen: dict[str, Tensor], mine: tuple[Tensor, ...]) -> Tensor:
        given = iter(mine)
        one = changed(batch, lambda t: next(given)[None] if t.dim() and t.shape[0] == examples else t)
        return functional_call(host, chosen, (one,))[0]

    chosen = {f"model.{name}": p.detach() for name, p in params.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")
        found = vmap(grad(loss), in_dims=(None, 0), randomness="different")(chosen, tuple(tensors))
    return {name: found[f"model.{name}"] for name in params}


def _one_by_one(
    model: nn.Module, batch: Any, loss_fn: LossFn, params: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    examples = count(batch)
    rows = []
    for index in range(examples):
        loss = losses_of(model, taken(batch, examples, [index]), loss_fn, 1)
        found = torch.autograd.grad(
            loss.sum(), list(params.values()), allow_unused=True, materialize_grads=True
        )
        rows.append([dense(g) for g in found])
    return {name: torch.stack(column) for name, column in zip(params, zip(*rows, strict=True), strict=True)}


def written_out(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    params: Mapping[str, Tensor],
    wanted: Wanted,
    chunk_size: int | None,
) -> Sums:
    """The same sums from explicit gradients, all held at once only where every pair of them must meet."""
    gradients = _materialised(model, batch, loss_fn, params, chunk_size)
    if wanted.grams:
        pieces = list(gradients)
        gradients = iter([{name: torch.cat([piece[name] for piece in pieces]) for name in params}])
    elif wanted.own_direction:
        first = written_out(model, batch, loss_fn, params, Wanted(totals=True), chunk_size)
        direction = {name: total / count(batch) for name, total in first.totals.items()}
        wanted = replace(wanted, own_direction=False, direction=direction)
    chunks = []
    for some in gradients:
        chunks.append(Sums(torch.empty(0)))
        for name, values in some.items():
            reduce(Dense(values, params[name].shape), name, wanted, chunks[-1])
    return joined(chunks)
