"""Whether two networks agree in the singular vectors of their large singular values (arXiv 2402.04051)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_names, check_number, nearest
from thalweg.probe._named import NamedParams, named
from thalweg.probe._quiet import modules_named
from thalweg.probe._units import overhear
from thalweg.probe._wrapped import bare
from thalweg.probe.cost import costs

__all__ = ["LayerAgreement", "SingularAgreement", "input_energy", "singular_agreement"]


@dataclass(frozen=True)
class LayerAgreement:
    """Agreement of one weight in both networks.

    Attributes:
        agreement: R of this layer alone.
        vectors: pairs of singular vectors that were kept: the fewer of the two networks'.
        share_of_bound: inner product of the weights over the sum of products of their singular values, the
            most that any pair of rotations, and so any permutation, could give it (von Neumann).
        distance: Euclidean distance of the weights.
    """

    agreement: float
    vectors: int
    share_of_bound: float
    distance: float


@dataclass(frozen=True)
class SingularAgreement:
    """Agreement of two networks.

    Attributes:
        agreement: R, 1 for equal networks, about 0 for unrelated ones.
        threshold: share of a layer's largest singular value from which on vectors are kept.
        layers: weight to its own agreement.
    """

    agreement: float
    threshold: float
    layers: dict[str, LayerAgreement]


@torch.no_grad()
@costs(0, 0, memory="two matrices with their singular vectors in float64")
def singular_agreement(
    model: NamedParams,
    reference: NamedParams,
    *,
    threshold: float = 0.3,
    layers: Iterable[str] | None = None,
) -> SingularAgreement:
    r"""How far two networks' dominant singular vectors agree (arXiv 2402.04051).

    .. math:: R(\gamma) = \frac{\sum_l \sum_{ij} (u_i^A \cdot u_j^B)(v_i^A \cdot v_j^B)}{\sum_l n_l}

    over the singular vectors whose value is at least :math:`\gamma` times the layer's largest, in either
    network. Signs cancel, and so do rotations among equal singular values. Weight matching hardly brings
    weights closer; it raises R, the more the larger :math:`\gamma`, since it maximises
    :math:`\sum_{ij} s_i^A s_j^B (u_i^A \cdot u_j^B)(v_i^A \cdot v_j^B)`. Compare the network before and after
    ``thalweg.surgery.align``.

    A convolution counts as a matrix (out, in x places). No pass through the model: two singular value
    decompositions a matrix.

    Args:
        model, reference: models, mappings of names to tensors, or (name, tensor) pairs.
        threshold: :math:`\gamma`, in [0, 1].
        layers: names of weights; by default all with two dimensions or more.

    Raises:
        ValueError: the two have no weights in common, shapes differ, or one is not finite or is zero.
    """
    threshold = check_number("threshold", threshold, 0, 1)
    ours, theirs = (
        {name: p.detach() for name, p in named(one).items() if p.dim() >= 2} for one in (reference, model)
    )
    names = list(ours) if layers is None else check_names("layers", layers)
    if layers is None and isinstance(model, nn.Module):
        # A state dict also holds buffers, and a tied weight under each of its names.
        whole = bare(model)
        also = {name for name, _ in whole.named_parameters(remove_duplicate=False)}
        also |= {name for name, _ in whole.named_buffers()}
        names = [name for name in names if name in theirs or name not in also]
    if not names:
        raise ValueError("layers must name at least one weight with two dimensions or more, got none")
    found, inner, count = {}, 0.0, 0
    for name in names:
        for argument, weights in (("reference", ours), ("model", theirs)):
            if name not in weights:
                raise ValueError(f"{argument} must have a weight {name!r}, got none{nearest(name, weights)}")
            if not bool(weights[name].isfinite().all()) or not bool(weights[name].any()):
                raise ValueError(f"{argument}[{name!r}] must be finite and not all zero")
        if ours[name].shape != theirs[name].shape:
            raise ValueError(
                f"model[{name!r}] must have shape {tuple(ours[name].shape)} as in reference, "
                f"got {tuple(theirs[name].shape)}"
            )
        product, found[name] = _layer(ours[name], theirs[name], threshold)
        inner += product
        count += found[name].vectors
    return SingularAgreement(inner / count, threshold, found)


def _layer(ours: Tensor, theirs: Tensor, threshold: float) -> tuple[float, LayerAgreement]:
    matrices = [weight.double().flatten(1).cpu() for weight in (ours, theirs)]
    parts = [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices]
    kept = [values >= threshold * values[0] for _, values, _ in parts]
    # The double sum is the inner product of the weights with their kept singular values set to 1.
    flat = [u[:, keep] @ vh[keep] for (u, _, vh), keep in zip(parts, kept, strict=True)]
    product = torch.sum(flat[0] * flat[1]).item()
    vectors = min(int(keep.sum()) for keep in kept)
    bound = torch.dot(parts[0][1], parts[1][1]).item()
    return product, LayerAgreement(
        agreement=product / vectors,
        vectors=vectors,
        share_of_bound=torch.sum(matrices[0] * matrices[1]).item() / bound,
        distance=torch.linalg.vector_norm(matrices[0] - matrices[1]).item(),
    )


@costs(1, 0, memory="one layer's inputs, and a matrix with its singular vectors in float64")
def input_energy(
    model: nn.Module, batch: Any, *, threshold: float = 0.3, layers: Iterable[str] | None = None
) -> dict[str, float]:
    r"""Share of the energy of a layer's inputs in the right singular vectors of its large singular values.

    .. math:: \sum_{i:\, s_i \ge \gamma s_1} \lVert Z v_i \rVert^2 \big/ \lVert Z \rVert^2

    with the inputs Z, one row a sample. Where it is high, only those vectors matter, and matching need align
    no others (arXiv 2402.04051). With n of m directions kept, inputs without a preference give n / m.

    Args:
        model: runs once, in evaluation mode. Behind DDP or ``torch.compile`` the module itself is run.
        batch: a tensor, a tuple of positional or a mapping of keyword arguments.
        threshold: :math:`\gamma`, in [0, 1].
        layers: names of ``Linear`` layers; by default all that run. An attention layer of torch reads the
            weight of its last one and does not run it.

    Returns:
        Layer to its share; ``name[1]`` for its second run.

    Raises:
        ValueError: a layer is unknown, no ``Linear``, does not run, or its inputs are all zero.
    """
    threshold = check_number("threshold", threshold, 0, 1)
    model = bare(model)
    every = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not every:
        raise ValueError("model must have a Linear layer, got none")
    chosen = modules_named(model, every if layers is None else check_names("layers", layers))
    for name, module in chosen.items():
        if not isinstance(module, nn.Linear):
            raise ValueError(f"layers must name Linear layers, got {name!r}, a {type(module).__name__}")
    shares: dict[str, float] = {}

    def hear(name: str, inputs: Tensor) -> None:
        weight = chosen[name.partition("[")[0]].weight.detach().double().cpu()  # type: ignore[union-attr, operator]
        _, values, vh = torch.linalg.svd(weight, full_matrices=False)
        rows = inputs.double().cpu().flatten(0, -2)
        whole = rows.square().sum().item()
        if not whole > 0:
            raise ValueError(f"layer {name!r} must have inputs that are not all zero")
        kept = vh[values >= threshold * values[0]]
        shares[name] = (rows @ kept.T).square().sum().item() / whole

    overhear(model, batch, {}, chosen, hear, all_run=layers is not None)
    return shares
