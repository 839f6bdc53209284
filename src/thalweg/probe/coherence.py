"""Gradient coherence (arXiv 2203.10036): how well the gradients of single examples agree."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count, check_number
from thalweg.probe._example_batch import LossFn
from thalweg.probe._example_moments import gradient_moments
from thalweg.probe.cost import costs
from thalweg.probe.example_gradients import MEMORY

__all__ = [
    "GradientCoherence",
    "batch_coherence",
    "coherence_of_batches",
    "example_coherence",
    "gradient_coherence",
]


@dataclass(frozen=True)
class GradientCoherence:
    r"""Agreement of m per-example gradients; NaN where all of them are zero.

    Attributes:
        alpha: :math:`\|\mathrm{mean}_i g_i\|^2 / \mathrm{mean}_i \|g_i\|^2`, in [0, 1]: 1 if all are equal,
            1/m if they are orthogonal, 0 if they cancel.
        m_coherence: m times alpha: how many examples, itself counted, an example's gradient helps on average.
        unbiased: estimate of alpha for infinitely many examples, (m alpha - 1) / (m - 1); a little below 0 at
            times; NaN for one example.
        per_layer: name of the parameter to the alpha of its part.
        examples: m.
        loss: mean loss of the examples. Compare runs at equal loss, never at equal step.
        materialised: as in :class:`ExampleGradientNorms`.
    """

    alpha: float
    m_coherence: float
    unbiased: float
    per_layer: dict[str, float]
    examples: int
    loss: float
    materialised: tuple[str, ...] = ()


def _coherence(of_mean: float, mean: float) -> float:
    # Rounding may leave the mean gradient a hair longer than its members.
    return min(of_mean / mean, 1.0) if mean > 0 else math.nan


@costs(2, 2, memory="one copy of the parameters; " + MEMORY)
def gradient_coherence(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    *,
    chunk_size: int | None = None,
    verify: bool = True,
) -> GradientCoherence:
    """Coherence of the per-example gradients of a batch (arXiv 2203.10036), whole and by parameter.

    Far above 1/m the examples teach each other; near it every example is learned for itself, which is
    memorising. A high value at initialisation is often no more than a shared direction of the output biases.
    Under DistributedDataParallel the examples of all processes count as one batch. A loss whose gradient
    holds weight decay would be coherent by that alone: leave it out of ``loss_fn``.

    Args:
        model, batch, loss_fn, chunk_size, verify: as in :func:`example_gradient_norms`; m of 256 or more.

    Raises:
        ValueError: as there.
    """
    found = gradient_moments(model, batch, loss_fn, chunk_size, verify)
    m = found.examples
    alpha = _coherence(found.of_mean.sum().item(), found.mean.sum().item())
    pairs = zip(found.names, found.of_mean.tolist(), found.mean.tolist(), strict=True)
    return GradientCoherence(
        alpha=alpha,
        m_coherence=m * alpha,
        unbiased=(m * alpha - 1) / (m - 1) if m > 1 else math.nan,
        per_layer={name: _coherence(of_mean, mean) for name, of_mean, mean in pairs},
        examples=m,
        loss=found.loss,
        materialised=found.materialised,
    )


@costs(0, 0, memory="one copy of the gradients")
def coherence_of_batches(
    gradients: Iterable[Tensor | Sequence[Tensor]], *, names: Sequence[str] | None = None
) -> GradientCoherence:
    r"""Coherence of k gradients that are there already: of minibatches, micro-batches or workers.

    The way for a model whose examples cannot be told apart (batch normalisation in training mode). Everything
    in the answer is about the k gradients; :func:`example_coherence` gives that of single examples.

    Args:
        gradients: k lists of one tensor a parameter, or k tensors of all of them: gradients of mean losses of
            batches of equal size; may be a generator, since only their sum is kept.
        names: of the parameters, for ``per_layer``; by default their positions.

    Returns:
        ``examples`` is k and ``loss`` NaN.

    Raises:
        ValueError: there is no gradient, or they do not have the same shapes.
    """
    total: list[Tensor] = []
    squared: list[float] = []
    k = 0
    for k, gradient in enumerate(gradients, start=1):
        gradient = [gradient] if isinstance(gradient, Tensor) else gradient
        tensors = [g.detach().to(torch.promote_types(g.dtype, torch.float32)) for g in gradient]
        if total and [g.shape for g in tensors] != [t.shape for t in total]:
            raise ValueError(f"gradients[{k - 1}] must have the shapes of gradients[0]")
        total = (
            [t + g for t, g in zip(total, tensors, strict=True)] if total else [g.clone() for g in tensors]
        )
        norms = [g.double().square().sum().item() for g in tensors]
        squared = [a + b for a, b in zip(squared, norms, strict=True)] if squared else norms
    if not total:
        raise ValueError("gradients must hold at least one list of tensors, got none")
    listed = [str(index) for index in range(len(total))] if names is None else list(names)
    if len(listed) != len(total):
        raise ValueError(f"names must hold {len(total)} names, got {len(listed)}")
    of_mean = [t.double().square().sum().item() / k**2 for t in total]
    mean = [s / k for s in squared]
    alpha = _coherence(math.fsum(of_mean), math.fsum(mean))
    return GradientCoherence(
        alpha,
        k * alpha,
        (k * alpha - 1) / (k - 1) if k > 1 else math.nan,
        {n: _coherence(a, b) for n, a, b in zip(listed, of_mean, mean, strict=True)},
        k,
        math.nan,
    )


@costs(0, 0, memory="none")
def batch_coherence(alpha: float, batch_size: int) -> float:
    r"""Coherence among gradients of batches of b examples whose own coherence is ``alpha``.

    .. math:: \alpha_b = b \alpha / (1 + (b - 1) \alpha)

    Args:
        alpha: expected coherence of single examples (``GradientCoherence.unbiased``), in [0, 1].
        batch_size: b.

    Raises:
        ValueError: an argument is out of range.
    """
    check_number("alpha", alpha, 0, 1)
    check_count("batch_size", batch_size)
    return batch_size * alpha / (1 + (batch_size - 1) * alpha)


@costs(0, 0, memory="none")
def example_coherence(alpha: float, batch_size: int) -> float:
    r"""Coherence of single examples, from that of batches of b: the inverse of :func:`batch_coherence`.

    .. math:: \alpha = \alpha_b / (b - (b - 1) \alpha_b)

    Args:
        alpha: expected coherence of batches, in [0, 1].
        batch_size: b.

    Raises:
        ValueError: an argument is out of range.
    """
    check_number("alpha", alpha, 0, 1)
    check_count("batch_size", batch_size)
    return alpha / (batch_size - (batch_size - 1) * alpha)
