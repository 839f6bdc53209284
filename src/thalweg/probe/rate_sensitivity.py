"""Learning-rate sensitivity (arXiv 2309.14322): how much a learning rate that is not the best costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import fmean

from thalweg._core.checks import check_number, check_positive
from thalweg.probe.cost import costs

__all__ = ["LearningRateSensitivity", "learning_rate_sensitivity"]


@dataclass(frozen=True)
class LearningRateSensitivity:
    """What a sweep over learning rates shows; losses in the unit of the training's.

    Attributes:
        sensitivity: expected deviation from the best loss, for a rate drawn from those tried.
        best_rate, best_loss: where the loss is least.
        losses: rate to final loss, as capped; in the order of ``rates``.
        failed: rates whose loss was not finite or above the initial one.
    """

    sensitivity: float
    best_rate: float
    best_loss: float
    losses: dict[float, float]
    failed: tuple[float, ...]


@costs(0, 0, memory="that of one training run after the other, one a rate")
def learning_rate_sensitivity(
    train: Callable[[float], float], rates: Iterable[float], *, initial_loss: float | None = None
) -> LearningRateSensitivity:
    r"""Expected deviation from the optimum over a range of learning rates (arXiv 2309.14322).

    .. math:: S = \mathrm{mean}_\eta \left[ \min(L(\eta), L_0) - \min_{\eta'} L(\eta') \right]

    The published range is 3e-4 to 3e-1; compare models over the same rates. Rates evenly spaced in their
    logarithm stand for the expectation over a log-uniform rate. Where training is short, the lowest rates
    measure mostly how little it was trained.

    Args:
        train: learning rate to final loss, from the same start each time; NaN where it diverged.
        rates: positive and different, at least two.
        initial_loss: :math:`L_0`, the loss before training; what a run that ended above it, or not at a
            finite number, counts as.

    Raises:
        ValueError: rates are not as they must be, ``initial_loss`` is not finite or below every final loss,
            or a final loss is not finite and there is no ``initial_loss``.
    """
    tried = [check_positive("rates", rate) for rate in rates]
    if len(tried) < 2 or len(set(tried)) < len(tried):
        raise ValueError(f"rates must be at least two and different, got {tried}")
    cap = math.inf
    if initial_loss is not None:
        cap = check_number("initial_loss", initial_loss, -math.inf, math.inf, "()")
    losses, failed = {}, []
    for rate in tried:
        loss = float(train(rate))
        if not math.isfinite(loss) and initial_loss is None:
            raise ValueError(
                f"initial_loss must be given where training diverges: the loss at rate {rate:g} is {loss}"
            )
        if not (math.isfinite(loss) and loss <= cap):
            failed.append(rate)
            loss = cap
        losses[rate] = loss
    if len(failed) == len(tried):
        raise ValueError(f"initial_loss must be above some final loss, got {initial_loss}")
    best_rate = min(losses, key=losses.__getitem__)
    best = losses[best_rate]
    sensitivity = fmean(loss - best for loss in losses.values())
    return LearningRateSensitivity(sensitivity, best_rate, best, losses, tuple(failed))
