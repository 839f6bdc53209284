"""Fourier waves on a cyclic group, and the frequencies that a network on modular arithmetic computes with.

Both as in "Progress measures for grokking via mechanistic interpretability" (arXiv 2301.05217).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_number
from thalweg.probe._units import overhear
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["KeyFrequencies", "fourier_basis", "fourier_gini", "key_frequencies"]


@dataclass(frozen=True)
class KeyFrequencies:
    """Which waves the units of a layer are made of.

    Attributes:
        frequencies: those that enough units prefer, rising, each in 1..modulus // 2.
        units: frequency to the number of tuned units that prefer it, also of those that are too few.
        preferred: the frequency of each unit, shape (units,); 0 for a unit that is constant.
        energy: share of each unit's variance over the inputs that its frequency explains, in [0, 1].
    """

    frequencies: tuple[int, ...]
    units: dict[int, int]
    preferred: Tensor
    energy: Tensor


@torch.no_grad()
@costs(0, 0, memory="modulus squared numbers")
def fourier_basis(modulus: int) -> Tensor:
    r"""Orthonormal real waves on the integers modulo ``modulus``, one a row, float64 (modulus, modulus).

    The constant, then :math:`\cos(2\pi k x/p)` and :math:`\sin(2\pi k x/p)` for k = 1, 2, ...; an even
    modulus ends with the alternating row.

    Raises:
        ValueError: ``modulus`` is not an integer of at least 2.
    """
    p = check_count("modulus", modulus, 2)
    x = torch.arange(p, dtype=torch.float64)
    rows = [torch.ones_like(x)]
    for k in range(1, p // 2 + 1):
        # The remainder first: cosines of large angles are less exact.
        angle = 2 * torch.pi * (k * x % p) / p
        rows += [angle.cos()] if 2 * k == p else [angle.cos(), angle.sin()]
    basis = torch.stack(rows)
    return basis / torch.linalg.vector_norm(basis, dim=1, keepdim=True)


@torch.no_grad()
@costs(0, 0, memory="two copies of the weight in float64")
def fourier_gini(weight: Tensor, *, dim: int = 0) -> float:
    r"""How few waves make up a weight: Gini coefficient of its Fourier components (arXiv 2301.05217).

    With :math:`c_{(1)} \le \dots \le c_{(p)}` the norms of the components along ``dim``, sorted,

    .. math:: G = 1 - 2 \sum_k \frac{c_{(k)}}{\|c\|_1} \frac{p - k + 1/2}{p},

    0 where all are equal, 1 - 1/p for a single wave. For an embedding give the p rows of the numbers alone;
    for the map from neurons to logits, ``dim`` is that of the logits.

    Args:
        weight: any shape; the numbers modulo p = ``weight.shape[dim]`` lie along ``dim``.

    Raises:
        ValueError: ``dim`` is none of the weight's, or shorter than 2; the weight is zero or not finite.
    """
    if not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"dim must be a dimension of weight {tuple(weight.shape)}, got {dim}")
    table = weight.detach().double().movedim(dim, 0).reshape(weight.shape[dim], -1)
    p = len(table)
    sizes = torch.linalg.vector_norm(fourier_basis(p).to(table.device) @ table, dim=1).sort().values
    total = sizes.sum()
    if not bool(total.isfinite()) or not bool(total > 0):
        raise ValueError(f"weight must be finite and not zero, got norms that add up to {total.item()}")
    below = (p - torch.arange(1, p + 1, dtype=table.dtype, device=table.device) + 0.5) / p
    return (1 - 2 * (sizes / total * below).sum()).item()


def pair_rows(p: int, pairs: Tensor | None) -> Tensor:
    """Both numbers of every row, int64 (p², 2); every pair once.

    Raises:
        ValueError: they are not all the pairs.
    """
    if pairs is None:
        every = torch.arange(p * p)
        pairs = torch.stack([every // p, every % p], dim=1)
    elif pairs.shape != (p * p, 2) or pairs.dtype.is_floating_point:
        raise ValueError(
            f"pairs must be integers of shape ({p * p}, 2), got {pairs.dtype}, {tuple(pairs.shape)}"
        )
    pairs = pairs.detach().cpu().to(torch.int64)
    inside = bool(((pairs >= 0) & (pairs < p)).all())
    if not inside or len((pairs[:, 0] * p + pairs[:, 1]).unique()) < p * p:
        raise ValueError(f"pairs must hold every pair of numbers in [0, {p}) once")
    return pairs


def last_position(name: str, values: Tensor, rows: int) -> Tensor:
    """Shape (rows, units), whether the layer returned that or (rows, positions, units)."""
    if values.dim() == 3:
        values = values[:, -1]
    if values.dim() != 2 or len(values) != rows:
        raise ValueError(
            f"{name} must have shape ({rows}, units) or ({rows}, positions, units), got {tuple(values.shape)}"
        )
    return values


@costs(1, 0, memory="three times the layer's outputs, in float64")
def key_frequencies(
    model: nn.Module,
    inputs: Any,
    modulus: int,
    layer: str,
    *,
    pairs: Tensor | None = None,
    least_energy: float = 0.5,
    least_units: float = 0.05,
) -> KeyFrequencies:
    r"""The frequencies that a layer's units are tuned to, on all pairs (a, b) modulo p (arXiv 2301.05217).

    The activations of a unit are centred and transformed over a and over b. Frequency k explains the share of
    its variance that lies in products of :math:`1, \cos(2\pi k a/p), \sin(2\pi k a/p)` with the same of b;
    the unit prefers the k that explains most. A unit is tuned if that is at least ``least_energy``, and a
    frequency is key if at least ``least_units`` of all units are tuned to it. Take the key frequencies from
    the trained model and hold them fixed over the run, or measures that use them jump.

    Args:
        model: run once in evaluation mode without gradients. Behind DDP or ``torch.compile`` the module
            itself is run.
        inputs: all p² pairs as the model takes them.
        modulus: p.
        layer: name of the module whose outputs are looked at, such as the activation after the first linear
            layer; (p², units), or (p², positions, units) of which the last position counts.
        pairs: a and b of each row, integers (p², 2); by default row i is (i // p, i % p).
        least_energy: in [0, 1].
        least_units: share of the units, in [0, 1].

    Raises:
        ValueError: an argument is out of range, ``pairs`` are not all pairs, the layer is unknown or returns
            something else.
    """
    check_number("least_energy", least_energy, 0, 1)
    check_number("least_units", least_units, 0, 1)
    p = check_count("modulus", modulus, 2)
    model = bare(model)
    kept: list[Tensor] = []
    known = dict(model.named_modules())
    if layer not in known:
        raise ValueError(f"layer must be a module of the model, got {layer!r}")
    overhear(model, inputs, {layer: known[layer]}, {}, lambda run, values: kept.append(values.clone()))
    values = last_position(f"output of {layer!r}", kept[-1], p * p).double().cpu()
    order = pair_rows(p, pairs)
    table = torch.empty_like(values)
    table[order[:, 0] * p + order[:, 1]] = values
    power = torch.fft.fft2(table.view(p, p, -1), dim=(0, 1)).abs().square()
    power[0, 0] = 0
    total = power.sum((0, 1))
    shares = []
    for k in range(1, p // 2 + 1):
        waves = sorted({0, k, p - k})
        shares.append(power[waves][:, waves].sum((0, 1)))
    # A constant unit is left with rounding errors alone.
    alive = total > 1e-20 * p**4 * values.square().amax(0)
    energy, best = (torch.stack(shares) / total.where(alive, torch.ones_like(total))).max(0)
    preferred = torch.where(alive, best + 1, 0)
    energy = energy.where(alive, torch.zeros_like(energy))
    tuned = Counter(preferred[alive & (energy >= least_energy)].tolist())
    enough = tuple(sorted(k for k, units in tuned.items() if units >= least_units * len(preferred)))
    return KeyFrequencies(enough, dict(sorted(tuned.items())), preferred, energy)
