"""The gradients of two groups of examples against each other (arXiv 2311.04163)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._example_batch import (
    LossFn,
    count,
    losses_of,
    taken,
    trainable,
    undisturbed,
    unwrapped,
)
from thalweg.probe._example_ranks import group_of, summed
from thalweg.probe._graphs import check_reachable
from thalweg.probe._normalising import mixing_examples, normalising_as_in_training
from thalweg.probe._wrapped import on_every_rank, one_state
from thalweg.probe.cost import costs

__all__ = ["OpposingGradients", "opposing_gradients"]


@dataclass(frozen=True)
class OpposingGradients:
    """How the mean gradients of two groups of examples lie to each other.

    Attributes:
        cosine: between them, over all parameters, in [-1, 1]; 0 where one is zero.
        per_layer: name of the parameter to the cosine of its part.
        norms: lengths of the two, in units of loss per unit of parameter.
        projections: inner products of the two with ``direction``, or None; of opposite sign if the groups are
            pushed to opposite sides along it.
    """

    cosine: float
    per_layer: dict[str, float]
    norms: tuple[float, float]
    projections: tuple[float, float] | None


@costs(1, 2, memory="two gradients")
def opposing_gradients(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    rising: Sequence[int],
    falling: Sequence[int],
    *,
    direction: Tensor | None = None,
) -> OpposingGradients:
    """Whether two groups of examples pull the weights apart, in all and by parameter (arXiv 2311.04163).

    Where batch normalisation is in training mode it normalises by the batch, as a training step does: the
    losses of a group are then those of its members within the whole batch, and their gradients count what
    they do to the statistics. Everything else is in evaluation mode.

    Args:
        model, batch, loss_fn: as in :func:`example_gradient_norms`; under DistributedDataParallel each
            process names members among its own examples, and the groups of all are one.
        rising, falling: positions in the batch, such as :class:`OpposingSignals` names.
        direction: flat vector over the parameters that require a gradient, in the model's order, such as
            ``Sharpness.vectors[0]``: the sharpest direction.

    Raises:
        ValueError: a group is empty or names no example; ``direction`` has another length; or as
            :func:`example_gradient_norms` says.
    """
    inner, group = unwrapped(model), group_of(model)
    params = trainable(inner)
    groups = {"rising": rising, "falling": falling}

    def own() -> list[list[Tensor]]:
        return _sums(inner, batch, loss_fn, groups, list(params.values()), alone=group is None)

    with one_state(model, group):
        found = on_every_rank(own, group, inner, "rising, falling, batch and loss_fn")
    gradients: list[list[Tensor]] = []
    for (name, members), sums in zip(groups.items(), found, strict=True):
        size = int(summed(torch.tensor(len(members), device=sums[0].device), group))
        if not size:
            raise ValueError(f"{name} must name at least one example, got none on any process")
        gradients.append([summed(g.detach(), group).double() / size for g in sums])
    dots = torch.stack([(a * b).sum() for a, b in zip(*gradients, strict=True)])
    squares = [torch.stack([g.square().sum() for g in one]) for one in gradients]
    sizes = (squares[0] * squares[1]).sqrt()
    cosines = torch.where(sizes > 0, dots / sizes, 0).clamp(-1, 1).tolist()
    first, second = (one.sum().sqrt().item() for one in squares)
    return OpposingGradients(
        max(-1.0, min(1.0, dots.sum().item() / (first * second))) if first * second > 0 else 0.0,
        dict(zip(params, cosines, strict=True)),
        (first, second),
        None if direction is None else _projections(gradients, direction),
    )


def _sums(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    groups: Mapping[str, Sequence[int]],
    params: list[Tensor],
    alone: bool,
) -> list[list[Tensor]]:
    """Gradient of the summed losses of each group, of this process's examples."""
    examples, norms, mixed = count(batch), normalising_as_in_training(model), mixing_examples(model)
    found = []
    with undisturbed(model):
        for norm in norms:
            norm.training = True
        # Where examples are normalised together, those of a group are what they are in the whole batch.
        every = losses_of(model, batch, loss_fn, examples) if mixed else None
        for name, members in groups.items():
            listed = [int(index) for index in members]
            if alone and not listed:
                raise ValueError(f"{name} must name at least one example, got none")
            for index in listed:
                if not 0 <= index < examples:
                    raise ValueError(f"{name} must hold positions in [0, {examples}), got {index}")
            if not listed:
                found.append([torch.zeros_like(p) for p in params])
                continue
            if every is None:
                losses = losses_of(model, taken(batch, examples, listed), loss_fn, len(listed))
            else:
                losses = every[listed]
            check_reachable("loss_fn", losses)
            gradient = torch.autograd.grad(
                losses.sum(), params, retain_graph=mixed, allow_unused=True, materialize_grads=True
            )
            found.append(list(gradient))
    return found


def _projections(gradients: list[list[Tensor]], direction: Tensor) -> tuple[float, float]:
    flat = [torch.cat([g.reshape(-1) for g in one]) for one in gradients]
    if direction.shape != flat[0].shape:
        raise ValueError(
            f"direction must have shape ({len(flat[0])},), one entry a weight, got {tuple(direction.shape)}"
        )
    first, second = ((one @ direction.detach().to(one)).item() for one in flat)
    return first, second
