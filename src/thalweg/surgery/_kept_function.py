"""Permuting a model, and seeing that it computes what it did before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.surgery._axis_run import movable, run, tensors_in, undisturbed
from thalweg.surgery._matching import Match, Matching
from thalweg.surgery._orders import Permutations, Symmetry

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest answer; half precision: 0.05


def matched(
    new: nn.Module,
    inputs: Any,
    answer: Any,
    matching: Matching,
    old: Mapping[str, Tensor],
    how: tuple[int, int, int],
) -> tuple[Match, float, set[int]]:
    """Match, permute ``new``, and see that it answers as before; a group that does not keep that is held.

    Args:
        new: gets the permuted weights.
        answer: of ``new`` to ``inputs`` with its own weights.
        old: those weights and running statistics.
        how: sweeps, restarts, seed.

    Returns:
        The permutations, how much they change the answer, and which groups were held.

    Raises:
        ValueError: the model answers differently each time, or no group can be blamed for a change.
    """
    group, (sweeps, restarts, seed) = matching.symmetry, how
    held: set[int] = set()
    while True:
        generator = torch.Generator().manual_seed(seed)
        tries = [matching.run(generator, sweeps, held) for _ in range(restarts)]
        found = max(tries, key=lambda one: matching.objective(one.perms)) if restarts > 1 else tries[0]
        error = _change(new, inputs, answer, group, old if held else None, found.perms)
        if error <= _tolerance(new):
            return found, error, {label for head in held for label in matching.family(head)}
        _restore(movable(new), old)
        with undisturbed(new):
            again = _difference(answer, run(new, inputs))
        if again > _tolerance(new):
            raise ValueError(
                f"model must answer the same inputs alike, got answers of {type(new).__name__} that differ "
                f"by {again:.2g} of the largest"
            )
        wrong = {
            head
            for head in matching.heads
            if head not in held
            and _change(new, inputs, answer, group, old, _only(group, found.perms, matching.family(head)))
            > _tolerance(new)
        }
        if not wrong:
            raise ValueError(
                f"model must keep its function when units are permuted, got a change of {error:.2g} of the "
                f"largest answer of {type(new).__name__}"
            )
        held |= wrong


def _only(group: Symmetry, perms: Permutations, family: set[int]) -> Permutations:
    return group.identity() | {label: perms[label] for label in family}


@torch.no_grad()
def _change(
    new: nn.Module,
    inputs: Any,
    answer: Any,
    group: Symmetry,
    old: Mapping[str, Tensor] | None,
    perms: Permutations,
) -> float:
    """How much the answers of ``new`` change when its weights, or those of ``old``, are permuted for good."""
    theirs = movable(new)
    if old is not None:
        _restore(theirs, old)
    group.apply(theirs, perms)
    with undisturbed(new):
        return _difference(answer, run(new, inputs))


@torch.no_grad()
def _restore(tensors: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(old[name])


def _difference(before: Any, after: Any) -> float:
    """Largest difference of two answers, relative to the largest entry; infinite for another shape."""
    worst = 0.0
    befores, afters = tensors_in(before), tensors_in(after)
    if [one.shape for one in befores] != [one.shape for one in afters]:
        return math.inf
    for one, other in zip(befores, afters, strict=True):
        if not one.is_floating_point() or not one.numel():
            continue
        # Infinite where both are, as behind a mask, is no difference.
        same = (one == other) | (one.isnan() & other.isnan())
        gap = torch.where(same, 0.0, (one - other).abs()).max().item()
        size = torch.where(one.isfinite(), one.abs(), 0.0).max().item()
        if not math.isfinite(gap):
            return math.inf
        worst = max(worst, gap / max(size, torch.finfo(one.dtype).tiny))
    return worst


def _tolerance(model: nn.Module) -> float:
    return max(TOLERANCE.get(p.dtype, 0.05) for p in model.parameters())
