"""Which sums over examples are wanted, and taking them from whatever form the gradients have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from thalweg.probe._example_forms import Form, wide

KINDS = ("norms", "totals", "squares", "grams", "dots")


@dataclass
class Sums:
    """By name of the parameter, over the examples of one process.

    Attributes:
        losses: (B,).
        norms: squared norm of each example's gradient, (B,).
        totals, squares: sum of the gradients, and of their squared entries, of the parameter's shape.
        grams: inner products, (B, B).
        dots: inner products with the direction, (B,).
        slow: parameters whose per-example gradients had to be materialised.
    """

    losses: Tensor
    norms: dict[str, Tensor] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)
    squares: dict[str, Tensor] = field(default_factory=dict)
    grams: dict[str, Tensor] = field(default_factory=dict)
    dots: dict[str, Tensor] = field(default_factory=dict)
    slow: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What to compute beside the norms."""

    totals: bool = False
    squares: bool = False
    grams: bool = False
    direction: Mapping[str, Tensor] | None = None
    own_direction: bool = False


def reduce(form: Form, name: str, wanted: Wanted, sums: Sums) -> None:
    sums.norms[name], whole = form.norms(wanted.totals or wanted.own_direction)
    if wanted.totals and whole is not None:
        sums.totals[name] = whole
    if wanted.squares:
        sums.squares[name] = form.squares()
    if wanted.grams:
        sums.grams[name] = form.gram()
    if wanted.own_direction and whole is not None:
        sums.dots[name] = form.dots(whole / form.examples)
    elif wanted.direction is not None:
        sums.dots[name] = form.dots(wanted.direction[name].to(sums.norms[name].dtype))


def reduce_nothing(p: Tensor, examples: int, name: str, wanted: Wanted, sums: Sums) -> None:
    zeros = wide(p.detach()).new_zeros(examples)
    sums.norms[name] = zeros
    if wanted.totals:
        sums.totals[name] = zeros.new_zeros(p.shape)
    if wanted.squares:
        sums.squares[name] = zeros.new_zeros(p.shape)
    if wanted.grams:
        sums.grams[name] = zeros.new_zeros(examples, examples)
    if wanted.own_direction or wanted.direction is not None:
        sums.dots[name] = zeros


def joined(chunks: list[Sums]) -> Sums:
    """Sums of several parts of a batch; a parameter that any part has no answer for is left out."""
    first = chunks[0]
    if len(chunks) == 1:
        return first
    joined = Sums(torch.cat([one.losses for one in chunks]))
    for name in set(first.norms).intersection(*(one.norms for one in chunks)):
        for kind in ("norms", "dots"):
            if name in getattr(first, kind):
                getattr(joined, kind)[name] = torch.cat([getattr(one, kind)[name] for one in chunks])
        for kind in ("totals", "squares"):
            if name in getattr(first, kind):
                getattr(joined, kind)[name] = torch.stack([getattr(one, kind)[name] for one in chunks]).sum(0)
    return joined
