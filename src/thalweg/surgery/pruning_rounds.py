"""Train, prune, rewind, again: lottery tickets (arXiv 1903.01611) and cuts by sparsity (arXiv 2302.05601)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import (
    check_choice,
    check_count,
    check_not_negative,
    check_number,
    check_positive,
    check_unit_interval,
)
from thalweg.surgery._edit import checked, chosen_layers, copied
from thalweg.surgery.held_masks import checked_masks
from thalweg.surgery.sparsity_index import pq_index, retained_bound

__all__ = ["PruningRound", "adaptive_cut", "prune_in_rounds", "share_cut"]

Masks = dict[str, Tensor]
Cut = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Masks]
KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class PruningRound:
    """One round.

    Attributes:
        level: how many cuts were made before, 0 for the dense model.
        density: share of the prunable weights that are left, in (0, 1].
        masks: name of a parameter to a boolean tensor, True where the weight is left.
        model: trained under these masks.
        result: what ``train`` has returned.
    """

    level: int
    density: float
    masks: Masks
    model: nn.Module
    result: Any


def prune_in_rounds(
    model: nn.Module,
    train: Callable[[nn.Module, Masks], Any],
    cut: Cut,
    *,
    rounds: int = 11,
    layers: Iterable[str] | None = None,
) -> Iterator[PruningRound]:
    """Iterative pruning: train, cut weights by their trained values, return the others to where they began.

    ``model`` holds the values to which the survivors return, buffers included: those of step k of training
    for rewinding (arXiv 1903.01611), of step 0 for the first lottery tickets and for arXiv 2302.05601. Every
    round trains a copy of it from there; ``model`` itself stays as it is.

    Args:
        model: at step k.
        train: ``train(model, masks)`` trains in place from step k to the end, schedule and data order going
            on at k, with a fresh optimizer under :func:`hold_masks`.
        cut: ``cut(weights, masks)`` gives the next masks: :func:`share_cut`, :func:`adaptive_cut`.
        rounds: number of cuts; one round more is trained and yielded, the dense one first.
        layers: names; None for all linear and convolutional layers, but for transposed ones. Biases and
            normalisations stay whole.

    Raises:
        ValueError: for a bad argument; a layer is unknown, shared, tied, parametrized or on the meta device;
            ``train`` let masked weights move or left some that are not finite; ``cut`` gave masks of other
            shapes or brought weights back.
    """
    check_count("rounds", rounds, low=0)
    for name, given in (("train", train), ("cut", cut)):
        if not callable(given):
            raise ValueError(f"{name} must be a function, got {given!r}")
    model = checked(model)
    if layers is None:
        layers = [name for name, module in model.named_modules() if isinstance(module, KINDS)]
    names = [f"{name}.weight" for name in chosen_layers(model, layers, KINDS)]
    start = copied(model)
    return _rounds(start, train, cut, rounds, names)


def _rounds(
    start: nn.Module, train: Callable[[nn.Module, Masks], Any], cut: Cut, rounds: int, names: list[str]
) -> Iterator[PruningRound]:
    masks = {name: torch.ones_like(start.get_parameter(name), dtype=torch.bool) for name in names}
    total = sum(mask.numel() for mask in masks.values())
    for level in range(rounds + 1):
        current = copied(start)
        with torch.no_grad():
            for name, mask in masks.items():
                current.get_parameter(name).masked_fill_(~mask, 0)
        # Copies, so that nothing the caller does to them reaches the next round.
        result = train(current, {name: mask.clone() for name, mask in masks.items()})
        weights = {name: current.get_parameter(name).detach() for name in names}
        for name, mask in masks.items():
            moved = int((weights[name][~mask] != 0).sum())
            if moved:
                raise ValueError(
                    f"train must hold the masks, got {moved} pruned weights of {name!r} that moved"
                )
        density = sum(int(mask.sum()) for mask in masks.values()) / total
        yield PruningRound(level, density, {n: mask.clone() for n, mask in masks.items()}, current, result)
        if level < rounds:
            for name, weight in weights.items():
                if not bool(weight.isfinite().all()):
                    raise ValueError(
                        f"train must leave finite weights to choose from, got others in {name!r}"
                    )
            masks = _narrower(start, masks, cut(weights, masks))


def _narrower(model: nn.Module, masks: Masks, found: Mapping[str, Tensor]) -> Masks:
    new = checked_masks(model, found)
    if new.keys() != masks.keys():
        raise ValueError(f"cut must give masks for {sorted(masks)}, got {sorted(new)}")
    for name, mask in new.items():
        if bool((mask & ~masks[name]).any()):
            raise ValueError(f"cut must not bring pruned weights back, got some in {name!r}")
    return new


def share_cut(share: float = 0.2) -> Cut:
    """Drop the smallest ceil(share · remaining) weights of the whole model; of equal ones the earlier."""
    share = check_unit_interval("share", share)

    def cut(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Masks:
        left = sum(int(mask.sum()) for mask in masks.values())
        return _together(weights, masks, lambda kept: math.ceil(left * share - 1e-9))

    return cut


def adaptive_cut(
    scope: str = "model",
    *,
    p: float = 0.5,
    q: float = 1.0,
    eta: float = 0.0,
    gamma: float = 1.0,
    beta: float = 0.9,
) -> Cut:
    r"""Drop as many of the smallest weights as their PQ index allows (SAP, arXiv 2302.05601).

    Of the d remaining weights of the scope, with index I, the bound keeps m = ceil(:func:`retained_bound`),
    and the cut drops ``floor(d · clamp(gamma · (1 - m / d), 0, beta))``.

    Args:
        scope: what is measured and cut together: an output ``"row"``, a ``"layer"`` or the whole ``"model"``.
        p, q: 0 < p < q, of the index.
        eta: what the dropped may carry, relative to the kept, at least 0.
        gamma: how much of what the bound allows is cut, above 0.
        beta: most that one round may drop, in [0, 1).
    """
    check_choice("scope", scope, ("row", "layer", "model"))
    check_not_negative("eta", eta)
    check_positive("gamma", gamma)
    beta = check_number("beta", beta, 0, 1, "[)")
    retained_bound(1, 0.0, p=p, q=q, eta=eta)  # refuses p and q

    def drops(kept: Tensor) -> int:
        d = len(kept)
        if d == 0:
            return 0
        m = math.ceil(retained_bound(d, pq_index(kept, p, q), p=p, q=q, eta=eta) - 1e-9)
        return math.floor(d * min(max(gamma * (1 - m / d), 0.0), beta) + 1e-9)

    def cut(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Masks:
        if scope == "model":
            return _together(weights, masks, drops)
        new = {}
        for name, mask in masks.items():
            lines = 1 if scope == "layer" else len(mask)
            rows = zip(weights[name].reshape(lines, -1), mask.reshape(lines, -1), strict=True)
            new[name] = torch.stack([_without_smallest(w, m, drops) for w, m in rows]).view_as(mask)
        return new

    return cut


def _together(
    weights: Mapping[str, Tensor], masks: Mapping[str, Tensor], drops: Callable[[Tensor], int]
) -> Masks:
    """All tensors as one row."""
    flat = torch.cat([weights[name].flatten() for name in masks])
    mask = _without_smallest(flat, torch.cat([m.flatten() for m in masks.values()]), drops)
    parts = mask.split([m.numel() for m in masks.values()])
    return {name: part.view_as(masks[name]) for name, part in zip(masks, parts, strict=True)}


def _without_smallest(weights: Tensor, mask: Tensor, drops: Callable[[Tensor], int]) -> Tensor:
    count = drops(weights[mask])
    places = mask.nonzero().flatten()
    lowest = weights[mask].abs().argsort(stable=True)[:count]
    new = mask.clone()
    new[places[lowest]] = False
    return new
