"""How useful a unit is to the layer that reads it, by what is read in one step."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg.continual._chain import CONVOLUTIONS, Link

UTILITIES = (
    *("contribution", "zero_contribution", "adaptable_contribution", "feature_by_input"),
    *("weight", "adaptation", "random"),
)


def wide(tensor: Tensor) -> Tensor:
    """In at least float32, without its graph."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def by_unit(features: Tensor, link: Link) -> Tensor:
    """What the reader reads, as (batch x positions, units)."""
    if isinstance(link.reader, CONVOLUTIONS):
        features = features.movedim(features.dim() + 1 - link.reader.weight.dim(), -1)
    elif link.columns_per_unit > 1:
        # Channels first: each channel owns a run of neighbouring inputs of a dense layer.
        features = features.unflatten(-1, (link.units, link.columns_per_unit)).movedim(-2, -1)
    return wide(features).reshape(-1, link.units)


def outgoing(link: Link) -> Tensor:
    """The reader's weight as (outputs, units, columns of a unit)."""
    weight = wide(link.reader.weight)
    return weight.reshape(weight.shape[0], link.units, -1)


def sizes(kind: str, features: Tensor, mean: Tensor) -> Tensor:
    """What the utility is a mean of, before the weights: |h| or |h - mean|, (batch x positions, units).

    Args:
        kind: one of ``UTILITIES``.
        features: (batch x positions, units).
        mean: running mean of each unit's feature, bias-corrected, (units,).
    """
    return (features if kind == "contribution" else features - mean).abs()


def instantaneous_utility(kind: str, link: Link, size: Tensor, generator: torch.Generator | None) -> Tensor:
    """Utility of each unit in this step, shape (units,).

    Args:
        kind: one of ``UTILITIES``.
        size: mean over batch and positions of what :func:`sizes` says, (units,).
        generator: draws the random utility.
    """
    if kind == "random":
        device = generator.device if generator is not None else size.device
        return torch.rand(size.shape, dtype=size.dtype, device=device, generator=generator).to(size.device)
    read = made = torch.ones((), dtype=size.dtype, device=size.device)
    if kind not in ("adaptation", "feature_by_input"):
        read = outgoing(link).abs().mean((0, 2))
    if kind in ("adaptation", "feature_by_input", "adaptable_contribution"):
        made = wide(link.maker.weight).flatten(1).abs().mean(1)
        made = made.clamp_min(torch.finfo(made.dtype).tiny)
    if kind in ("weight", "adaptation"):
        return read / made
    return size * read / made
