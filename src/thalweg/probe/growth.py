"""How far weights have grown and turned since an earlier moment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from thalweg.probe._named import NamedParams, named
from thalweg.probe.cost import costs

__all__ = ["WeightGrowth", "weight_growth"]


@dataclass(frozen=True)
class WeightGrowth:
    """Norms of the weights, and what became of them since ``before``.

    Attributes:
        norm: name to Euclidean norm.
        growth: name to norm over the norm before; infinite for a weight that was zero and is not, 1 for one
            that is zero still.
        rotation: name to the angle between the weight and what it was, in radians, [0, π]; 0 where either
            is zero. For scale-invariant weights this is all that the function sees.
        total: norm of all weights together.
        total_growth: ``total`` over what it was.
    """

    norm: dict[str, float]
    growth: dict[str, float]
    rotation: dict[str, float]
    total: float
    total_growth: float


def _ratio(now: float, before: float) -> float:
    if before:
        return now / before
    return math.inf if now else 1.0


def _entries(p: Tensor) -> Tensor:
    """In float64; of complex ones the real and the imaginary part."""
    p = p.detach()
    return (torch.view_as_real(p.resolve_conj()) if p.is_complex() else p).flatten().double()


@torch.no_grad()
@costs(0, 0, memory="one weight and its predecessor in float64")
def weight_growth(named_params: NamedParams, before: Mapping[str, Tensor]) -> WeightGrowth:
    """Growth and rotation of each weight since ``before``.

    Growing weights make the steps of normalised networks smaller, which is one way to lose plasticity (arXiv
    2407.01800); weight norm alone does not explain it (arXiv 2303.01486). Between two consecutive steps the
    rotation is the effective learning rate as it was, whatever the optimizer.

    Args:
        named_params: a module (behind DDP or ``torch.compile``, that inside), a mapping of names to tensors,
            or (name, tensor) pairs.
        before: name to tensor: copies of the same parameters at an earlier moment; other entries (those of a
            ``state_dict``, say) are left aside.

    Raises:
        ValueError: there is no parameter; one is missing in ``before`` or has another shape there; one is not
            finite.
    """
    params = named(named_params)
    norms, past, rotation = {}, {}, {}
    for name, p in params.items():
        if name not in before or before[name].shape != p.shape:
            got = f"shape {tuple(before[name].shape)}" if name in before else "none"
            raise ValueError(f"before must hold {name!r} with shape {tuple(p.shape)}, got {got}")
        now, then = _entries(p), _entries(before[name]).to(p.device)
        size, old = torch.linalg.vector_norm(now), torch.linalg.vector_norm(then)
        if not bool((size + old).isfinite()):
            raise ValueError(f"{name!r} must be finite, now and before, got NaN or infinity")
        norms[name], past[name] = size.item(), old.item()
        # From the chord and not the cosine, which is blind to angles below 1e-8.
        if norms[name] and past[name]:
            a, b = now / size, then / old
            chord, sum_ = torch.linalg.vector_norm(a - b), torch.linalg.vector_norm(a + b)
            rotation[name] = 2 * torch.atan2(chord, sum_).item()
        else:
            rotation[name] = 0.0
    total, total_before = math.hypot(*norms.values()), math.hypot(*past.values())
    growth = {name: _ratio(norms[name], past[name]) for name in norms}
    return WeightGrowth(norms, growth, rotation, total, _ratio(total, total_before))
