"""Fitting the annealing law (arXiv 2408.11029) to one or more loss curves, robustly and with uncertainty."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
from scipy.optimize import least_squares, nnls

from thalweg._core.checks import check_count, check_number, check_positive
from thalweg.theory._arrays import Floats, as_floats, as_steps
from thalweg.theory.annealing import AnnealingLaw, annealing_areas, law_slopes, law_value, warmup_steps

__all__ = ["annealing_law"]

EXPONENTS = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5)
REFINED = 3
"""How many of the best starts are followed to their end."""
NORMAL = 1.4826
"""Standard deviation over median absolute value of a normal distribution."""


def annealing_law(
    rates: Any,
    losses: Any,
    steps: Any = None,
    *,
    decay: float | Sequence[float] = 0.999,
    warmup: int | None = None,
    skip: int = 0,
    huber: float = 1e-3,
) -> AnnealingLaw:
    r"""Fit the four numbers of the annealing law to loss curves and their schedules (arXiv 2408.11029).

    Minimises the Huber loss of :math:`\log L_{pred} - \log L_{obs}`, with all four numbers at least 0, from
    several exponents; for each the other three start from their least-squares values. Two curves with
    different schedules pin the numbers down; one must at least have a part with falling learning rate.

    Uncertainty: :math:`\sigma^2 (J^T J)^{-1}`, with J the slopes of the log residuals, and :math:`\sigma^2`
    their robust scatter (Huber's estimate) times :math:`(1+\rho)/(1-\rho)`, where :math:`\rho` is the
    correlation of neighbouring residuals within a curve, if positive: neighbours that err together count
    as fewer readings. It takes the law for true.

    Args:
        rates: of one curve (steps,), or a list with one such sequence a curve: the learning rate of every
            step from the first, also of steps without a loss.
        losses: one sequence a curve, in the same order: losses above 0 of one kind (all training or all
            validation), not smoothed. Losses inside the warm-up are not fitted.
        steps: one sequence a curve: how many steps were done at each loss; None where there is a loss after
            every step.
        decay: :math:`\lambda`. 0.999 suits runs of tens of thousands of steps, 0.99 thousands. Of several,
            the one that fits best is taken; the uncertainty then holds for that one.
        warmup: steps of warm-up of every curve; None reads it off each curve as its rising start.
        skip: steps after the warm-up whose losses are not fitted either.
        huber: log residual beyond which an error counts linearly.

    Raises:
        ValueError: curves don't match in number or length, a loss is not above 0, fewer than 5 losses are
            left, or no schedule falls, so that nothing can be said about cooling.
    """
    check_count("skip", skip, low=0)
    check_positive("huber", huber)
    curves = _curves(rates, losses, steps)
    given: Any = [decay] if np.ndim(decay) == 0 else decay
    decays = [check_number("decay", value, 0, 1) for value in given]
    if not decays:
        raise ValueError("decay must be a number or a list of them, got an empty one")
    fits = [_fit(curves, value, warmup, skip, huber) for value in decays]
    return min(fits, key=lambda fit: fit[0])[1]


def _curves(rates: Any, losses: Any, steps: Any) -> list[tuple[Floats, Floats, np.ndarray]]:
    if not isinstance(rates, Sized) or not len(rates):
        raise ValueError(f"rates must be a sequence of learning rates, or a list of them, got {rates!r}")
    if np.ndim(rates[0]) == 0:  # type: ignore[index]
        rates, losses, steps = [rates], [losses], [steps]
    elif steps is None:
        steps = [None] * len(rates)
    for name, given in (("losses", losses), ("steps", steps)):
        # Lists may be ragged, which NumPy refuses to look at.
        if not isinstance(given, list | tuple) and np.ndim(given) == 0:
            raise ValueError(f"{name} must be a list with one sequence a curve, got {given!r}")
    if not len(rates) == len(losses) == len(steps):
        raise ValueError(
            f"rates, losses and steps must have one sequence a curve, got {len(rates)}, {len(losses)} and "
            f"{len(steps)}"
        )
    curves = []
    for i, (eta, loss, at) in enumerate(zip(rates, losses, steps, strict=True)):
        eta = as_floats(f"rates[{i}]", eta, low=0)
        loss = as_floats(f"losses[{i}]", loss, low=0, open_low=True)
        at = as_steps(f"steps[{i}]", at, len(eta))
        if len(at) != len(loss):
            raise ValueError(
                f"losses[{i}] must have one loss for each of the {len(at)} steps, got {len(loss)}; "
                "give steps where losses were not measured after every step"
            )
        curves.append((eta, loss, at))
    return curves


def _fit(
    curves: list[tuple[Floats, Floats, np.ndarray]],
    decay: float,
    warmup: int | None,
    skip: int,
    huber: float,
) -> tuple[float, AnnealingLaw]:
    parts = []
    for rates, losses, steps in curves:
        forward, annealing = annealing_areas(rates, decay, warmup=warmup)
        kept = (steps > warmup_steps(rates, warmup) + skip) & (forward[steps - 1] > 0)
        parts.append((forward[steps[kept] - 1], annealing[steps[kept] - 1], losses[kept]))
    s1, s2, observed = (np.concatenate(values) for values in zip(*parts, strict=True))
    if len(observed) < 5:
        raise ValueError(f"losses must have at least 5 after warm-up and skip, got {len(observed)}")
    if np.ptp(s2) == 0:
        raise ValueError(
            "rates must fall somewhere before the last loss, got only constant ones: how much a cooldown "
            "gains cannot be told from them"
        )

    def residuals(theta: Floats) -> Floats:
        return np.log(law_value(theta, s1, s2).clip(min=1e-9 * observed)) - np.log(observed)

    def jacobian(theta: Floats) -> Floats:
        value = law_value(theta, s1, s2)
        slopes = law_slopes(theta[1], theta[2], s1, s2) / value.clip(min=1e-9 * observed)[:, None]
        return np.where((value > 1e-9 * observed)[:, None], slopes, 0.0)

    def start(exponent: float) -> Floats:
        columns = law_slopes(1.0, exponent, s1, s2)[:, [0, 1, 3]] / observed[:, None]
        sizes = np.linalg.norm(columns, axis=0)
        floor, scale, cooling = nnls(columns / sizes, np.ones(len(observed)))[0] / sizes
        return np.array([floor, scale, exponent, cooling])

    def objective(theta: Floats) -> float:
        size = np.abs(residuals(theta))
        return float(np.where(size <= huber, size**2 / 2, huber * (size - huber / 2)).sum())

    starts = sorted(map(start, EXPONENTS), key=objective)[:REFINED]
    ends = [
        least_squares(
            residuals,
            first,
            jacobian,
            bounds=(0, np.inf),
            loss="huber",
            f_scale=huber,
            x_scale=np.maximum(np.abs(first), 1e-3 * np.abs(first).max()),
            xtol=1e-12,
            ftol=1e-12,
            gtol=1e-12,
            max_nfev=400,
        ).x
        for first in starts
    ]
    theta = min([*ends, *starts], key=objective)
    errors = residuals(theta)
    sizes = [len(losses) for _, _, losses in parts]
    variance = _variance(errors, huber) * _repeats(np.split(errors, np.cumsum(sizes)[:-1]))
    slopes = jacobian(theta)
    # Scaled columns: floor, scale and cooling differ by orders of magnitude.
    unit = np.linalg.norm(slopes, axis=0)
    unit[unit == 0] = 1
    values, vectors = np.linalg.eigh((slopes / unit).T @ (slopes / unit))
    # What the curves cannot tell stays uncertain: no direction gets a variance of 0 by rounding.
    inverse = vectors / values.clip(min=1e-15 * values[-1]) @ vectors.T
    covariance = variance * inverse / np.outer(unit, unit)
    typical = float(np.median(np.abs(errors))) * NORMAL
    floor, scale, exponent, cooling = map(float, theta)
    numbers = (floor, scale, exponent, cooling, decay)
    furthest = float(np.abs(s2).max())
    return objective(theta), AnnealingLaw(*numbers, covariance, typical, len(observed), furthest)


def _variance(errors: Floats, huber: float) -> float:
    """Huber's estimate of what the variance of the errors does to what is fitted, outliers cut off."""
    inside = np.abs(errors) <= huber
    bent = np.clip(errors, -huber, huber)
    freedom = max(1, len(errors) - 4)
    return float((bent**2).sum() / freedom / max(inside.mean(), 1 / len(errors)) ** 2)


def _repeats(curves: list[Floats]) -> float:
    """How many times fewer readings correlated neighbours are worth."""
    products = sum(float((c[1:] * c[:-1]).sum()) for c in curves)
    squares = sum(float((c[1:] ** 2).sum() + (c[:-1] ** 2).sum()) / 2 for c in curves)
    correlation = min(0.99, max(0.0, products / squares)) if squares else 0.0
    return (1 + correlation) / (1 - correlation)
