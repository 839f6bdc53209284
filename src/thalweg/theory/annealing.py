"""The annealing law (arXiv 2408.11029): a whole loss curve from the learning rates of its steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.signal import lfilter

from thalweg._core.checks import check_count, check_number
from thalweg.theory._arrays import Floats, as_floats, as_steps

__all__ = ["AnnealingLaw", "LossForecast", "annealing_areas"]


@dataclass(frozen=True)
class LossForecast:
    """A predicted loss curve.

    Attributes:
        steps: (n,) steps done when the loss is that.
        loss: (n,) in the unit of the fitted losses.
        error: (n,) standard error of ``loss`` from the uncertainty of the fitted numbers alone. What the law
            itself misses under another schedule is not in it.
        scatter: (n,) standard deviation of a single measured loss about the predicted one: ``error`` and the
            scatter of the fitted readings together.
        stretch: (n,) the annealing area there over the largest of the fitted readings. Far above 1 it is
            guesswork what the cooldown gains, and the predicted loss may even fall below 0.
    """

    steps: np.ndarray
    loss: Floats
    error: Floats
    scatter: Floats
    stretch: Floats


@dataclass(frozen=True)
class AnnealingLaw:
    r"""Loss after step s: :math:`L(s) = L_0 + A\,S_1(s)^{-\alpha} - C\,S_2(s)` (arXiv 2408.11029).

    Attributes:
        floor: :math:`L_0`, in the unit of the loss.
        scale: :math:`A`, of the falling part.
        exponent: :math:`\alpha`.
        cooling: :math:`C`, loss gained per unit of annealing area.
        decay: :math:`\lambda`, how much of a drop in learning rate is still to be felt one step later.
        covariance: (4, 4) of floor, scale, exponent and cooling, as :func:`annealing_law` estimates it.
        residual: relative scatter of the fitted readings about the law, 1.48 times the median absolute one.
        readings: how many losses were fitted.
        annealed: largest size of :math:`S_2` among them.
    """

    floor: float
    scale: float
    exponent: float
    cooling: float
    decay: float
    covariance: Floats
    residual: float
    readings: int
    annealed: float

    def predict(self, rates: Any, steps: Any = None, *, warmup: int | None = None) -> LossForecast:
        """The loss curve under another schedule, of the same model, data, batch size and optimizer.

        Args:
            rates: learning rate of every step, as in :func:`annealing_law`.
            steps: increasing counts of steps done at which to predict; all for None.
            warmup: as in :func:`annealing_areas`.

        Raises:
            ValueError: a rate is negative or not finite; no rate up to the first step is above 0; steps are
                out of order or out of range.
        """
        forward, annealing = annealing_areas(rates, self.decay, warmup=warmup)
        chosen = as_steps("steps", steps, len(forward))
        s1, s2 = forward[chosen - 1], annealing[chosen - 1]
        if s1[0] <= 0:
            raise ValueError(f"rates must have one above 0 up to the first step predicted, {chosen[0]}")
        loss = law_value((self.floor, self.scale, self.exponent, self.cooling), s1, s2)
        slopes = law_slopes(self.scale, self.exponent, s1, s2)
        variance = np.einsum("ni,ij,nj->n", slopes, self.covariance, slopes).clip(min=0)
        error = np.sqrt(variance)
        scatter = np.hypot(error, self.residual * loss)
        return LossForecast(chosen, loss, error, scatter, np.abs(s2) / self.annealed)


def law_value(numbers: Any, s1: Floats, s2: Floats) -> Floats:
    """The loss at areas ``s1`` > 0 and ``s2``; ``numbers`` are floor, scale, exponent and cooling."""
    floor, scale, exponent, cooling = numbers
    return floor + scale * s1**-exponent - cooling * s2


def law_slopes(scale: float, exponent: float, s1: Floats, s2: Floats) -> Floats:
    """(n, 4) derivatives of the loss by floor, scale, exponent and cooling."""
    power = s1**-exponent
    return np.stack([np.ones_like(s1), power, -scale * power * np.log(s1), -s2], axis=1)


def annealing_areas(rates: Any, decay: float = 0.999, *, warmup: int | None = None) -> tuple[Floats, Floats]:
    r"""The two areas under a schedule that the annealing law knows (arXiv 2408.11029).

    .. math:: S_1(s) = \sum_{i \le s} \eta_i, \qquad S_2(s) = \sum_{i \le s} m_i, \qquad
        m_i = \lambda m_{i-1} + (\eta_{i-1} - \eta_i)

    Warm-up counts in :math:`S_1`; in :math:`S_2` it would be a large negative drop, so differences begin
    after it.

    Args:
        rates: (steps,) learning rate of every step, from the first.
        decay: :math:`\lambda` in [0, 1]; with 1, :math:`m_i` is the whole drop since the peak.
        warmup: steps of warm-up, whose differences are left out; the rising start of ``rates`` for None.

    Returns:
        S1 and S2 after every step, both (steps,), in units of the learning rate.

    Raises:
        ValueError: a rate is negative or not finite, ``decay`` or ``warmup`` is out of range.
    """
    values = as_floats("rates", rates, low=0)
    check_number("decay", decay, 0, 1)
    drops = np.concatenate([[0.0], values[:-1] - values[1:]])
    drops[: warmup_steps(values, warmup) + 1] = 0
    felt = lfilter([1.0], [1.0, -decay], drops)
    return np.cumsum(values), np.cumsum(felt)


def warmup_steps(rates: Floats, warmup: int | None) -> int:
    if warmup is None:
        falls = np.diff(rates) <= 0
        return int(falls.argmax()) if falls.any() else len(rates) - 1
    if check_count("warmup", warmup, low=0) >= len(rates):
        raise ValueError(f"warmup must be less than the {len(rates)} steps of rates, got {warmup}")
    return warmup
