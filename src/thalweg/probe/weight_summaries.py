"""Fourteen numbers that summarise a network's weights, read along a run (arXiv 2308.09543)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from thalweg.probe._named import NamedParams, named
from thalweg.probe.cost import costs

__all__ = ["WeightStatistics", "weight_statistics"]

LEAST = 1e-5  # singular values below count as zero


@dataclass(frozen=True)
class WeightStatistics:
    """Norms, sparsity and spectrum of the weight matrices, and the distribution of all weights and biases.

    Attributes:
        values: name to number. ``l1`` and ``l2`` (of the entries), ``trace``, ``spectral norm``,
            ``code sparsity`` (l1 / l2), ``computational sparsity`` (trace / spectral norm),
            ``singular value mean`` and ``singular value variance``, each the mean over the weights that have
            it; ``weight mean``, ``weight median`` and ``weight variance`` over all entries of weights, and
            the same of ``bias`` where there are biases. Variances are unbiased.
        per_layer: parameter to its own.
    """

    values: dict[str, float]
    per_layer: dict[str, dict[str, float]]


@torch.no_grad()
@costs(0, 0, memory="one copy of all weights, and one matrix with its singular values in float64")
def weight_statistics(named_params: NamedParams) -> WeightStatistics:
    """The weight statistics whose course over a run shows its phases (arXiv 2308.09543).

    Every parameter with two or more dimensions is a weight. A convolution has no spectrum here: its l1, l2
    and code sparsity are means over pairs of channels. Vectors whose name ends in ``bias``, or begins with
    ``bias_`` as in ``nn.LSTM``, are biases; other vectors (gains of normalisation) are left out. No pass
    through the model: one singular value decomposition a matrix. Log it as readings, and give their course
    to :func:`fit_phases`.

    Args:
        named_params: a model, a mapping of names to tensors, or (name, tensor) pairs.

    Raises:
        ValueError: there is no weight, or one is not finite.
    """
    params = {name: p.detach() for name, p in named(named_params).items()}
    weights = {name: p for name, p in params.items() if p.dim() >= 2}
    biases = {name: p for name, p in params.items() if p.dim() == 1 and _is_bias(name.rpartition(".")[2])}
    if not weights:
        raise ValueError("named_params must hold a parameter with two dimensions or more, got none")
    for name, p in (weights | biases).items():
        if not bool(p.isfinite().all()):
            raise ValueError(f"{name!r} must be finite, got NaN or infinity")
    per_layer = {name: (_matrix if p.dim() == 2 else _kernel)(p.double()) for name, p in weights.items()}
    keys = dict.fromkeys(key for found in per_layer.values() for key in found)
    values = {key: fmean(found[key] for found in per_layer.values() if key in found) for key in keys}
    for kind, tensors in (("weight", weights), ("bias", biases)):
        if tensors:
            flat = torch.cat([p.reshape(-1).float() for p in tensors.values()])
            values |= {f"{kind} {name}": how(flat).item() for name, how in DISTRIBUTION.items()}
    return WeightStatistics(values, per_layer)


def _is_bias(name: str) -> bool:
    return name.endswith("bias") or name.startswith("bias_")


def _variance(values: Tensor) -> Tensor:
    return values.double().var() if values.numel() > 1 else values.new_zeros(())


DISTRIBUTION: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda values: values.double().mean(),
    "median": torch.median,
    "variance": _variance,
}


def _matrix(matrix: Tensor) -> dict[str, float]:
    values = torch.linalg.svdvals(matrix)
    values = values.where(values >= LEAST, 0.0)
    l1, l2 = (torch.linalg.vector_norm(matrix, order).item() for order in (1, 2))
    trace, spectral = matrix.diagonal().sum().item(), values[0].item()
    return {
        "l1": l1,
        "l2": l2,
        "trace": trace,
        "spectral norm": spectral,
        "code sparsity": l1 / l2 if l2 else 0.0,
        "computational sparsity": trace / spectral if spectral else 0.0,
        "singular value mean": values.mean().item(),
        "singular value variance": _variance(values).item(),
    }


def _kernel(kernel: Tensor) -> dict[str, float]:
    l1, l2 = (torch.linalg.vector_norm(kernel.flatten(2), order, dim=2) for order in (1, 2))
    ratio = torch.where(l2 > 0, l1 / l2, 0.0)
    return {"l1": l1.mean().item(), "l2": l2.mean().item(), "code sparsity": ratio.mean().item()}
