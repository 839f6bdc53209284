"""The last-iterate bound of convex SGD as a function of the schedule (arXiv 2501.18965)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg._core.checks import check_positive
from thalweg.theory._arrays import Floats, as_floats, as_steps

__all__ = ["ConvexBound", "convex_bound_curve", "convex_schedule_bound"]


@dataclass(frozen=True)
class ConvexBound:
    r"""A bound on the expected loss above the minimum at the last step, and its parts.

    With the schedule multiplied by :math:`\gamma` the bound is ``distance / γ + γ (noise + last)``.

    Attributes:
        value: of the schedule as given, in the unit of the loss.
        distance: what the start's distance from the minimum contributes.
        noise: what the gradients' sizes contribute, also to the mean of all iterates.
        last: what it costs to take the last iterate and not the mean.
        best_factor: :math:`\gamma` at which the bound is lowest; the best learning rate where ``rates`` peak
            at 1.
        best_value: the bound there.
    """

    value: float
    distance: float
    noise: float
    last: float
    best_factor: float
    best_value: float


def convex_schedule_bound(rates: Any, *, distance: float = 1.0, gradient_norm: Any = 1.0) -> ConvexBound:
    r"""Bound for the last iterate of SGD on a convex problem, under any schedule (arXiv 2501.18965).

    .. math:: \Omega_T = \frac{D^2 + \sum_t \eta_t^2 G_t^2}{2 \sum_t \eta_t}
        + \frac12 \sum_{k=1}^{T-1} \frac{\eta_k}{\beta_{k+1}} \frac{\gamma_k}{\beta_k}, \qquad
        \beta_k = \sum_{t=k}^{T} \eta_t, \quad \gamma_k = \sum_{t=k}^{T} \eta_t^2 G_t^2

    It holds for :math:`x_T`, at which the gradient of step T is taken: the loss that is logged at that step.
    D and G cannot be measured for a network: what carries over are ratios between schedules.

    Args:
        rates: (T,) learning rate of every step, the last above 0. A schedule that ends at 0 is given without
            that step, in which nothing moves.
        distance: D, from the first iterate to a minimiser.
        gradient_norm: G, bound on the root mean square of the gradient's norm; one number or (T,) of them.

    Time and memory are linear in T.

    Raises:
        ValueError: a rate is negative or not finite, the last is 0, D or G is not above 0, or G has another
            length.
    """
    values = as_floats("rates", rates, low=0)
    norms = _norms(gradient_norm, len(values))
    return _bound(values, check_positive("distance", distance), (values * norms) ** 2)


def convex_bound_curve(
    rates: Any, steps: Any = None, *, distance: float = 1.0, gradient_norm: Any = 1.0
) -> Floats:
    """The bound at each of several steps of one schedule, to lay over a loss curve (arXiv 2501.18965).

    Args:
        rates, distance, gradient_norm: as in :func:`convex_schedule_bound`; rates above 0 at ``steps``.
        steps: (n,) increasing steps, counted from 1; all for None. Each takes time linear in itself.

    Returns:
        (n,) in the unit of the loss.

    Raises:
        ValueError: as there, or steps are out of order or out of range.
    """
    values = as_floats("rates", rates, low=0)
    squares = (values * _norms(gradient_norm, len(values))) ** 2
    check_positive("distance", distance)
    chosen = as_steps("steps", steps, len(values))
    return np.array([_bound(values[:t], distance, squares[:t]).value for t in chosen])


def _norms(gradient_norm: Any, steps: int) -> Floats:
    if np.ndim(gradient_norm) == 0:
        return np.full(steps, check_positive("gradient_norm", gradient_norm))
    norms = as_floats("gradient_norm", gradient_norm, low=0, open_low=True)
    if len(norms) != steps:
        raise ValueError(
            f"gradient_norm must be one number or one for each of {steps} steps, got {len(norms)}"
        )
    return norms


def _bound(rates: Floats, distance: float, squares: Floats) -> ConvexBound:
    """``squares`` are the squared rates times the squared gradient norms."""
    if rates[-1] == 0:
        raise ValueError(f"rates must be above 0 at the step of the bound, got 0 at step {len(rates)}")
    # Summed from the end: differences of prefix sums could go below 0.
    ahead = np.cumsum(rates[::-1])[::-1]
    noise_ahead = np.cumsum(squares[::-1])[::-1]
    start = distance**2 / (2 * ahead[0])
    noise = noise_ahead[0] / (2 * ahead[0])
    last = float((rates[:-1] / ahead[1:] * noise_ahead[:-1] / ahead[:-1]).sum()) / 2
    return ConvexBound(
        value=float(start + noise + last),
        distance=float(start),
        noise=float(noise),
        last=last,
        best_factor=math.sqrt(start / (noise + last)),
        best_value=2 * math.sqrt(start * (noise + last)),
    )
