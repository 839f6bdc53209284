"""AdEMAMix (arXiv 2409.03137): Adam whose numerator adds a very slow mean of the gradient."""

from __future__ import annotations

import math

from thalweg._core.checks import check_count, check_not_negative
from thalweg.optim._betas import check_betas
from thalweg.optim.transform import Transform, element, part

__all__ = ["slow_decay", "two_speed"]


def slow_decay(step: float, start: float, end: float, warmup: int | None) -> float:
    r"""Decay :math:`\beta_3(t)` of the slow mean: its half-life grows linearly from ``start``'s to ``end``'s.

    .. math:: 1/\ln\beta_3(t) = (1 - t/T)/\ln\beta_1 + (t/T)/\ln\beta_3
    """
    if warmup is None or step >= warmup or end == 0:
        return end
    done = step / warmup
    inverse = done / math.log(end) + ((1 - done) / math.log(start) if start > 0 else 0.0)
    return math.exp(1 / inverse)


@part
def two_speed(
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    slow_gain: float = 2.0,
    eps: float = 1e-8,
    slow_gain_warmup: int | None = None,
    slow_decay_warmup: int | None = None,
) -> Transform:
    r"""Adam's direction with :math:`\alpha` times a slow mean of the gradient added to its numerator.

    .. math:: u_t = \frac{m_{1,t} / (1-\beta_1^t) + \alpha(t)\, m_{2,t}}{\sqrt{v_t/(1-\beta_2^t)} + \epsilon},
        \qquad m_{2,t} = \beta_3(t)\, m_{2,t-1} + (1-\beta_3(t))\, g_t

    The slow mean is *not* corrected for its start at zero: that is what lets it grow gently.

    Args:
        betas: :math:`(\beta_1, \beta_2, \beta_3)` of fast mean, square and slow mean, each in [0, 1).
            With :math:`\beta_1 = 0` the fast mean is the gradient and is not stored.
        slow_gain: :math:`\alpha`, at least 0; 5 to 10 in the paper's language-model runs.
        eps: :math:`\epsilon`, at least 0.
        slow_gain_warmup: steps over which :math:`\alpha(t) = \alpha t/T`; None for constant.
        slow_decay_warmup: steps over which :math:`\beta_3(t)` grows (:func:`slow_decay`); None for constant.

    State: ``mean`` (unless :math:`\beta_1 = 0`), ``slow_mean``, ``square``, each shaped like the parameter.
    """
    check_betas(betas, 3)
    check_not_negative("slow_gain", slow_gain)
    check_not_negative("eps", eps)
    for name, steps in (("slow_gain_warmup", slow_gain_warmup), ("slow_decay_warmup", slow_decay_warmup)):
        if steps is not None:
            check_count(name, steps)
    keeps_mean = betas[0] > 0

    def scalars(k):
        fast, square, slow = k.betas
        return {
            "unbias": 1 / (1 - fast**k.step),
            "unbias_root": (1 - square**k.step) ** -0.5,
            "slow_decay": slow_decay(k.step, fast, slow, slow_decay_warmup),
            "gain": k.slow_gain * (min(1.0, k.step / slow_gain_warmup) if slow_gain_warmup else 1.0),
        }

    def update(u, p, state, k):
        state = state.averaged(k.slow_decay, slow_mean=u).averaged(k.betas[1], square=u * u)
        if keeps_mean:
            state = state.averaged(k.betas[0], mean=u)
        mean = state.mean if keeps_mean else u
        return (mean * k.unbias + k.gain * state.slow_mean) * precondition(state, k), state

    def precondition(state, k):
        return 1 / (state.square.sqrt() * k.unbias_root + k.eps)

    return element(
        update,
        slots=("mean", "slow_mean", "square") if keeps_mean else ("slow_mean", "square"),
        scalars=scalars,
        precondition=precondition,
        degree=0,
        betas=tuple(betas),
        slow_gain=slow_gain,
        eps=eps,
    )
