"""Gradient noise scale (arXiv 1812.06162): the batch size at which noise and signal are equally large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from thalweg._core.checks import check_count, check_not_negative
from thalweg.probe._example_batch import LossFn
from thalweg.probe._example_moments import gradient_moments
from thalweg.probe.cost import costs
from thalweg.probe.example_gradients import MEMORY

__all__ = ["GradientNoiseScale", "gradient_noise_scale", "noise_scale_of_batches"]


@dataclass(frozen=True)
class GradientNoiseScale:
    r"""Noise against signal in the gradient, in examples.

    Attributes:
        simple: :math:`\mathrm{tr}\,\Sigma / \|G\|^2`, with :math:`\Sigma` the covariance of per-example
            gradients and G their mean over the data; infinite if no signal is left over the noise. Batches
            far below are noise dominated, far above they waste work.
        signal: unbiased estimate of :math:`\|G\|^2`; negative if there is less than the noise alone explains.
        noise: unbiased estimate of :math:`\mathrm{tr}\,\Sigma`.
        per_layer: name of the parameter to the simple noise scale of its part.
        examples: how many the estimates are from.
        materialised: as in :class:`ExampleGradientNorms`.
    """

    simple: float
    signal: float
    noise: float
    per_layer: dict[str, float]
    examples: int
    materialised: tuple[str, ...] = ()


def _scale(signal: float, noise: float) -> float:
    if noise == 0 and signal == 0:
        return math.nan
    return noise / signal if signal > 0 else math.inf


@costs(2, 2, memory="one copy of the parameters; " + MEMORY)
def gradient_noise_scale(
    model: nn.Module,
    batch: Any,
    loss_fn: LossFn,
    *,
    chunk_size: int | None = None,
    verify: bool = True,
) -> GradientNoiseScale:
    r"""Simple noise scale from one batch of B examples (arXiv 1812.06162), whole and by parameter.

    With :math:`s = \mathrm{mean}_i \|g_i\|^2` and :math:`r = \|\mathrm{mean}_i g_i\|^2`:

    .. math:: \|G\|^2 \approx (B r - s) / (B - 1), \qquad \mathrm{tr}\,\Sigma \approx B (s - r) / (B - 1)

    Both are unbiased, their ratio is not: average them over several batches before dividing where the ratio
    is far above B. Under DistributedDataParallel the examples of all processes count as one batch.

    Args:
        model, batch, loss_fn, chunk_size, verify: as in :func:`example_gradient_norms`; at least 2 examples.

    Raises:
        ValueError: as there; there is only one example.
    """
    found = gradient_moments(model, batch, loss_fn, chunk_size, verify)
    b = found.examples
    if b < 2:
        raise ValueError(f"batch must hold at least 2 examples, got {b}")
    signal = (b * found.of_mean - found.mean) / (b - 1)
    noise = b * (found.mean - found.of_mean).clamp_min(0) / (b - 1)
    scales = map(_scale, signal.tolist(), noise.tolist())
    whole = signal.sum().item(), noise.sum().item()
    return GradientNoiseScale(
        _scale(*whole), *whole, dict(zip(found.names, scales, strict=True)), b, found.materialised
    )


@costs(0, 0, memory="none")
def noise_scale_of_batches(
    small: Sequence[float] | Tensor, big: float, *, small_size: int, big_size: int
) -> GradientNoiseScale:
    r"""Simple noise scale from norms that accumulation or data-parallel training has anyway (appendix A.1).

    .. math:: \|G\|^2 \approx \frac{B r_B - b\,r_b}{B - b}, \qquad
        \mathrm{tr}\,\Sigma \approx \frac{r_b - r_B}{1/b - 1/B}

    with :math:`r_b` the mean squared norm of gradients of batches of b, :math:`r_B` that of B. Average
    ``signal`` and ``noise`` over steps before dividing: the numbers of one step scatter widely.

    Args:
        small: squared norms of gradients of mean losses of ``small_size`` examples each.
        big: squared norm of the gradient of the mean loss of ``big_size`` examples.
        small_size, big_size: b and B, with b < B.

    Returns:
        ``per_layer`` is empty; ``examples`` is B.

    Raises:
        ValueError: a norm is negative or not finite, there is none, or the sizes are not in order.
    """
    check_count("small_size", small_size)
    check_count("big_size", big_size, small_size + 1)
    values = [check_not_negative("small", value) for value in (float(value) for value in small)]
    if not values:
        raise ValueError("small must hold at least one squared norm, got none")
    check_not_negative("big", big)
    mean = math.fsum(values) / len(values)
    signal = (big_size * big - small_size * mean) / (big_size - small_size)
    noise = (mean - big) / (1 / small_size - 1 / big_size)
    return GradientNoiseScale(_scale(signal, noise), signal, noise, {}, big_size)
