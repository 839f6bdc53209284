"""The surge law (arXiv 2405.14578): best learning rate against batch size for sign-like optimizers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg._core.checks import check_positive, check_unit_interval
from thalweg.theory._arrays import Floats, as_floats

__all__ = ["SurgeLaw", "SurgeRates", "surge_law", "surge_of_rates"]


@dataclass(frozen=True)
class SurgeRates:
    """Best learning rates by batch size.

    Attributes:
        batch_sizes: (n,) in examples.
        rates: (n,) best learning rates.
        errors: (n,) their relative standard errors, from the uncertainty of the law's numbers alone.
        beyond_peak: (n,) where the batch is larger than the noise scale. The formula is one for smaller
            batches: there it says that nothing is gained, and its fall is too steep.
    """

    batch_sizes: Floats
    rates: Floats
    errors: Floats
    beyond_peak: np.ndarray


@dataclass(frozen=True)
class SurgeLaw:
    r"""Best learning rate :math:`\epsilon(B) = 2\epsilon_{max} / (\sqrt{B_n / B} + \sqrt{B / B_n})`.

    From arXiv 2405.14578.

    Attributes:
        peak_rate: :math:`\epsilon_{max}`, the largest of the best learning rates.
        noise_scale: :math:`B_n`, in examples: the batch size at that peak. It grows as training goes on.
        covariance: (2, 2) of the logarithms of the two.
        plateau: best rate of a huge batch, where known: beyond the peak no rate is given below it. 0 else.
    """

    peak_rate: float
    noise_scale: float
    covariance: Floats
    plateau: float = 0.0

    def predict(self, batch_sizes: Any) -> SurgeRates:
        """The best rates for (n,) batch sizes above 0; ValueError names any other."""
        sizes = as_floats("batch_sizes", batch_sizes, low=0, open_low=True)
        distance = np.log(self.noise_scale / sizes) / 2
        rates = self.peak_rate / np.cosh(distance)
        beyond = sizes > self.noise_scale
        rates = np.where(beyond, np.maximum(rates, min(self.plateau, self.peak_rate)), rates)
        slopes = np.stack([np.ones_like(sizes), -np.tanh(distance) / 2], axis=1)
        variance = np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes).clip(min=0)
        return SurgeRates(sizes, rates, np.sqrt(variance), beyond)


def surge_law(
    batch_sizes: Any,
    signals: Any,
    noises: Any,
    *,
    known_batch_size: float,
    known_rate: float,
    momentum: float = 0.0,
) -> SurgeLaw:
    r"""The surge law from readings of gradient signal and noise, and one batch size whose best rate is known.

    :math:`B_n = \mathrm{tr}\,\Sigma / \|G\|^2`: the noise scale, with which the paper (arXiv 2405.14578)
    identifies the peak. Signal and noise are averaged over the readings, each counted by its batch size,
    before they are divided. That identity is one of magnitude, not of digits: the peak also depends on the
    curvature (:func:`surge_of_gradients`), and a grid of best rates finds it directly
    (:func:`surge_of_rates`).

    The covariance comes from the scatter of the readings about their common ratio; ``known_rate`` counts as
    exact.

    Args:
        batch_sizes: (n,) examples in each reading, n at least 2.
        signals: (n,) estimates of :math:`\|G\|^2`; single ones may be negative.
        noises: (n,) estimates of :math:`\mathrm{tr}\,\Sigma`, as in ``GradientNoiseScale``, from about the
            same time of training.
        known_batch_size: batch size for which the best learning rate was found.
        known_rate: that rate.
        momentum: first decay rate of the optimizer, in [0, 1). It averages about (1 + m) / (1 - m) batches,
            so that the peak lies at a batch that much smaller.

    Raises:
        ValueError: lengths differ, an argument is out of range, or no signal or no noise is left on average.
    """
    sizes = as_floats("batch_sizes", batch_sizes, low=0, open_low=True)
    signal, noise = as_floats("signals", signals), as_floats("noises", noises)
    if not len(sizes) == len(signal) == len(noise) >= 2:
        raise ValueError(
            "batch_sizes, signals and noises must have one length of at least 2, got "
            f"{len(sizes)}, {len(signal)} and {len(noise)}"
        )
    check_positive("known_batch_size", known_batch_size)
    check_positive("known_rate", known_rate)
    check_unit_interval("momentum", momentum)
    for name, values in (("signals", signal), ("noises", noise)):
        if (mean := np.average(values, weights=sizes)) <= 0:
            raise ValueError(f"{name} must be above 0 on average over batches, got {mean:.3g}")
    ratio = float((sizes * noise).sum() / (sizes * signal).sum())
    parts = sizes * (noise - ratio * signal) / (sizes * noise).sum()
    variance = float((parts**2).sum()) * len(sizes) / (len(sizes) - 1)
    scale = ratio * (1 - momentum) / (1 + momentum)
    distance = math.log(scale / known_batch_size) / 2
    # At the known rate the law must hold: a larger noise scale lifts the peak with it.
    slope = np.array([math.tanh(distance) / 2, 1.0])
    return SurgeLaw(known_rate * math.cosh(distance), scale, variance * np.outer(slope, slope))


def surge_of_rates(batch_sizes: Any, rates: Any, *, noise_scale: float | None = None) -> SurgeLaw:
    r"""The surge law fitted to best learning rates found at several batch sizes (arXiv 2405.14578).

    :math:`1/\epsilon` is linear in :math:`B^{-1/2}` and :math:`B^{1/2}`: least squares of relative errors,
    whose covariance is that of their scatter. Batch sizes far beyond the peak do not follow the law: leave
    them out.

    Args:
        batch_sizes: (n,) at least 3, or 2 where ``noise_scale`` is given.
        rates: (n,) the best learning rate at each.
        noise_scale: :math:`B_n`, where it is known, such as from :func:`critical_batch_size`; it then counts
            as exact.

    Raises:
        ValueError: lengths differ, there are too few, a number is not above 0, or the rates have no peak:
            they do not bend below growth by the square root, or fall from the start.
    """
    sizes = as_floats("batch_sizes", batch_sizes, low=0, open_low=True)
    best = as_floats("rates", rates, low=0, open_low=True)
    needed = 2 if noise_scale is not None else 3
    if len(sizes) != len(best) or len(set(sizes)) < needed:
        raise ValueError(
            f"batch_sizes and rates must have one length and {needed} different sizes, got {len(sizes)} and "
            f"{len(best)} with {len(set(sizes))} sizes"
        )
    if noise_scale is not None:
        peaks = best * np.cosh(np.log(check_positive("noise_scale", noise_scale) / sizes) / 2)
        share = float(peaks.var(ddof=1)) / len(peaks) / float(peaks.mean()) ** 2
        return SurgeLaw(float(peaks.mean()), float(noise_scale), np.array([[share, 0.0], [0.0, 0.0]]))
    columns = best[:, None] * np.stack([sizes**-0.5, sizes**0.5], axis=1)
    unit = np.linalg.norm(columns, axis=0)
    scaled = columns / unit
    found = np.linalg.lstsq(scaled, np.ones(len(best)), rcond=None)[0]
    if found[1] <= 0:
        raise ValueError("rates must bend below growth by the square root of batch_sizes to have a peak")
    if found[0] <= 0:
        raise ValueError("rates must rise with batch_sizes somewhere to have a peak, got falling ones")
    scatter = float(((scaled @ found - 1) ** 2).sum()) / (len(best) - 2)
    relative = scatter * np.linalg.inv(scaled.T @ scaled) / np.outer(found, found)
    rising, falling = found / unit
    # log peak rate = -(log rising + log falling) / 2 - log 2, log noise scale = log rising - log falling
    logs = np.array([[-0.5, -0.5], [1.0, -1.0]])
    return SurgeLaw(
        float(1 / (2 * math.sqrt(rising * falling))), float(rising / falling), logs @ relative @ logs.T
    )
