"""Descent by the sign of a noisy gradient on a quadratic (arXiv 2405.14578): the best rate, its peak."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import erf

from thalweg.theory._arrays import Floats, as_floats
from thalweg.theory.surge import SurgeLaw

__all__ = ["SignDescent", "sign_descent", "surge_of_gradients"]


@dataclass(frozen=True)
class SignDescent:
    """What one step by the sign of the batch gradient can do.

    Attributes:
        rates: (n,) best learning rate at each batch size.
        gains: (n,) expected fall of the loss in that step; with a rate of c times the best it is c (2 - c)
            times that.
        plateau: best rate as the batch size grows without end.
    """

    rates: Floats
    gains: Floats
    plateau: float


def sign_descent(mean: Any, deviation: Any, hessian: Any, batch_sizes: Any) -> SignDescent:
    r"""Best learning rate of sign descent for any batch size, exactly (arXiv 2405.14578).

    With per-example gradients :math:`g_i \sim N(\mu_i, \sigma_i^2)`, independent over coordinates, and
    :math:`E_i(B) = \mathrm{erf}(\sqrt{B/2}\, \mu_i / \sigma_i)`, the mean sign of a batch's gradient:

    .. math:: \epsilon(B) = \frac{\sum_i E_i \mu_i}{\sum_i (1 - E_i^2) H_{ii} + \sum_{ij} E_i E_j H_{ij}},
        \qquad \Delta L = \tfrac12\, \epsilon(B) \sum_i E_i \mu_i

    Args:
        mean: (d,) :math:`\mu`, the gradient.
        deviation: (d,) :math:`\sigma`, standard deviation of the per-example gradients, above 0.
        hessian: (d, d) symmetric H of the loss.
        batch_sizes: (n,) above 0, in examples.

    Raises:
        ValueError: shapes do not fit, a number is not finite or not above 0 where it must be, or the loss
            curves down along a step, so that no rate is best.
    """
    mu, sigma, curvature = _quadratic(mean, deviation, hessian)
    sizes = as_floats("batch_sizes", batch_sizes, low=0, open_low=True)
    signs = erf(np.sqrt(sizes / 2)[:, None] * mu / sigma)
    progress = signs @ mu
    curved = (1 - signs**2) @ np.diag(curvature) + np.einsum("ni,ij,nj->n", signs, curvature, signs)
    # A coordinate without a mean keeps a random sign, however large the batch.
    limit = np.sign(mu)
    last = float((1 - limit**2) @ np.diag(curvature) + limit @ curvature @ limit)
    if (curved <= 0).any() or last <= 0:
        raise ValueError(
            f"hessian must curve up along the steps, got {min(curved.min(), last):.3g} along one"
        )
    rates = progress / curved
    return SignDescent(rates, rates * progress / 2, float(np.abs(mu).sum()) / last)


def surge_of_gradients(mean: Any, deviation: Any, hessian: Any) -> SurgeLaw:
    r"""The surge law's two numbers from gradient, noise and curvature (arXiv 2405.14578).

    .. math:: B_n = \frac{\pi \sum_i H_{ii}}{2 \sum_{i \ne j} \mu_i \mu_j H_{ij} / (\sigma_i \sigma_j)},
        \qquad \epsilon_{max} = \sqrt{\frac{B_n}{2\pi}}\, \frac{\sum_i \mu_i^2 / \sigma_i}{\sum_i H_{ii}}

    For batches well below :math:`\pi \sigma_i^2 / 2 \mu_i^2`; :func:`sign_descent` holds for all. Its limit
    of huge batches is the law's ``plateau``.

    Args:
        mean, deviation, hessian: as in :func:`sign_descent`.

    Returns:
        The law, with covariance 0.

    Raises:
        ValueError: as there; the curvatures do not sum to more than 0; or those between coordinates do not
            act together (a diagonal Hessian): then there is no peak, and the best rate rises throughout.
    """
    mu, sigma, curvature = _quadratic(mean, deviation, hessian)
    if not mu.any():
        raise ValueError("mean must not be 0 in every coordinate, got no gradient")
    own = float(np.trace(curvature))
    ratio = mu / sigma
    shared = float(ratio @ curvature @ ratio - ratio**2 @ np.diag(curvature))
    if own <= 0:
        raise ValueError(f"hessian must have a trace above 0, got {own:.3g}")
    if shared <= 1e-12 * own * float(ratio @ ratio):
        raise ValueError(
            "hessian must couple coordinates along the gradient for the best rate to have a peak, got a sum "
            f"over pairs of {shared:.3g}; the best rate then rises with the batch, see sign_descent"
        )
    scale = math.pi * own / (2 * shared)
    peak = math.sqrt(scale / (2 * math.pi)) * float(mu @ ratio) / own
    plateau = sign_descent(mu, sigma, curvature, [scale]).plateau
    return SurgeLaw(peak, scale, np.zeros((2, 2)), plateau)


def _quadratic(mean: Any, deviation: Any, hessian: Any) -> tuple[Floats, Floats, Floats]:
    mu = as_floats("mean", mean)
    sigma = as_floats("deviation", deviation, low=0, open_low=True)
    curvature = np.asarray(hessian, dtype=np.float64)
    if len(sigma) != len(mu):
        raise ValueError(f"deviation must have one entry for each of {len(mu)} means, got {len(sigma)}")
    if curvature.shape != (len(mu), len(mu)):
        raise ValueError(f"hessian must have shape ({len(mu)}, {len(mu)}), got {curvature.shape}")
    if not np.isfinite(curvature).all() or not np.allclose(curvature, curvature.T, rtol=1e-6, atol=1e-12):
        raise ValueError("hessian must be finite and symmetric, got one that is not")
    return mu, sigma, curvature
