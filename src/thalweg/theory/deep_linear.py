"""Exact learning curves of the modes of deep linear networks (arXiv 1312.6120)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, hyp2f1, logit

from thalweg._core.checks import check_count, check_number, check_positive
from thalweg.theory._arrays import Floats, as_floats

__all__ = ["mode_curve", "mode_time"]

CLOSEST = 1 - 2.0**-50
"""Share of its final strength at which a mode counts as learned, where the curve is found by bisection."""
HALVINGS = 60


def mode_curve(strength: float, start: float, times: Any, *, depth: int = 2, tau: float = 1.0) -> Floats:
    r"""Strength of one mode over time under gradient flow (arXiv 1312.6120).

    A mode is a singular direction of the input-output map; with L weight matrices, all of strength
    :math:`u^{1/L}` along it, its strength u in the product obeys

    .. math:: \tau \dot u = L\, u^{2-2/L} (s - u), \qquad
        L = 2:\; u(t) = \frac{s}{1 + (s / u_0 - 1)\, e^{-2 s t / \tau}}

    A single matrix learns :math:`s (1 - e^{-t/\tau}) + u_0 e^{-t/\tau}`: no plateau. Exact for white inputs,
    squared loss and decoupled initial weights (:func:`decoupled_weights`); small random weights have the
    same shape, shifted in time.

    Args:
        strength: s, the mode's singular value in the data (:func:`linear_modes`), above 0.
        start: :math:`u_0` in (0, s), of the product of the matrices; 0 is allowed at depth 1.
        times: (n,) at least 0, in the unit of ``tau``.
        depth: L, number of weight matrices.
        tau: time unit; 1 / learning rate gives ``times`` in steps of gradient descent, whose own curve
            differs by the order of learning rate times curvature.

    Returns:
        (n,) between ``start`` and ``strength``.

    Raises:
        ValueError: an argument is out of range.
    """
    check_count("depth", depth)
    _check_ends(strength, start, depth)
    t = as_floats("times", times, low=0) / check_positive("tau", tau)
    if depth == 1:
        return strength + (start - strength) * np.exp(-t)
    if depth == 2:
        return strength / (1 + (strength / start - 1) * np.exp(-2 * strength * t))
    # Time is known as a function of strength and rises with it: bisected on the scale of the logit.
    low = np.full(t.shape, logit(start / strength))
    high = np.full(t.shape, max(logit(CLOSEST), low[0]))
    begun = _elapsed(np.asarray(start / strength), strength, depth)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        early = _elapsed(expit(middle), strength, depth) - begun < t
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    return strength * expit((low + high) / 2)


def mode_time(strength: float, start: float, end: float, *, depth: int = 2, tau: float = 1.0) -> float:
    r"""How long gradient flow takes to bring a mode from one strength to another (arXiv 1312.6120).

    .. math:: t = \frac{\tau}{L} \int_{u_0}^{u_f} \frac{du}{u^{2-2/L} (s-u)}, \qquad
        L = 2:\; \frac{\tau}{2 s} \ln \frac{u_f (s - u_0)}{u_0 (s - u_f)}

    in closed form at every depth. A mode is half learned after about :math:`(\tau / 2s) \ln (s / u_0)` at
    depth 2: strong modes come first, and the wait grows as the logarithm of how small they begin; at larger
    depths it grows as a power.

    Args:
        strength, start, depth, tau: as in :func:`mode_curve`.
        end: in [start, strength).

    Returns:
        Time in the unit of ``tau``.

    Raises:
        ValueError: an argument is out of range.
    """
    check_count("depth", depth)
    _check_ends(strength, start, depth)
    check_number("end", end, start, strength, "[)")
    check_positive("tau", tau)
    begun, done = (_elapsed(np.asarray(u / strength), strength, depth) for u in (start, end))
    return tau * float(done - begun)


def _check_ends(strength: float, start: float, depth: int) -> None:
    check_positive("strength", strength)
    check_number("start", start, 0, strength, "[)" if depth == 1 else "()")


def _elapsed(share: Floats, strength: float, depth: int) -> Floats:
    """Time at which a mode is at ``share`` of its strength, up to a constant, for tau = 1."""
    if depth == 1:
        return -np.log1p(-share)
    if depth == 2:
        return logit(share) / (2 * strength)
    power = 2 / depth
    # One term of the integrand, x^(power - 2), taken apart: what is left is finite at 0.
    integral = share ** (power - 1) / (power - 1) + share**power / power * hyp2f1(1, power, power + 1, share)
    return integral * strength ** (power - 2) / depth
