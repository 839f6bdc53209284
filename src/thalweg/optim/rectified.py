"""RAdam (arXiv 1908.03265): Adam that holds back while it has seen too few gradients to know their scale."""

from __future__ import annotations

import math

from thalweg._core.checks import check_choice, check_not_negative, check_number
from thalweg.optim._betas import check_betas
from thalweg.optim.recipe_class import recipe
from thalweg.optim.transform import Transform, element, part

__all__ = ["RAdam", "gradients_seen", "rectified_adam", "rectifier"]


def gradients_seen(step: float, square_decay: float) -> float:
    r"""How many gradients the mean square of ``step`` averages over, in effect.

    .. math:: \rho_t = \rho_\infty - \frac{2 t \beta_2^t}{1-\beta_2^t}, \qquad
        \rho_\infty = \frac{2}{1-\beta_2} - 1
    """
    power = square_decay**step
    return 2 / (1 - square_decay) - 1 - 2 * step * power / (1 - power)


def rectifier(step: float, square_decay: float, threshold: float = 5.0) -> float:
    r"""The factor in (0, 1) on Adam's step, or 0 where :math:`\rho_t` is below ``threshold``.

    .. math:: r_t = \sqrt{\frac{(\rho_t-4)(\rho_t-2)\rho_\infty}{(\rho_\infty-4)(\rho_\infty-2)\rho_t}}
    """
    seen, most = gradients_seen(step, square_decay), 2 / (1 - square_decay) - 1
    if seen < threshold or most <= 4:
        return 0.0
    return math.sqrt((seen - 4) * (seen - 2) * most / ((most - 4) * (most - 2) * seen))


@part
def rectified_adam(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    threshold: float = 5.0,
    early: str = "skip",
) -> Transform:
    r"""Adam's direction times :func:`rectifier`, which grows to 1 over about :math:`2/(1-\beta_2)` steps.

    .. math:: u_t = r_t \frac{m_t}{1-\beta_1^t} \frac{\sqrt{1-\beta_2^t}}{\sqrt{v_t} + \epsilon} + \lambda w

    In the first steps (five of them, for :math:`\beta_2 > 0.9`), where the mean square averages over fewer
    gradients than ``threshold``, there is no such step.

    Args:
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon`, at least 0, added before the bias correction.
        weight_decay: :math:`\lambda`, at least 0. It is part of this transform because the released code
            leaves it out too in steps that it skips; :func:`thalweg.optim.decay` behind it would go on.
        threshold: least :math:`\rho_t` of a rectified step, at least 4: 5 in the released code, and the
            paper's "more than 4" is 4, where :math:`r_t` is 0 anyway.
        early: what happens below the threshold. ``"skip"``: nothing, neither step nor decay, as in the
            released code; ``"momentum"``: a step by :math:`m_t/(1-\beta_1^t)`, which is as large as the
            gradient, and decay, as in ``torch.optim.RAdam``.

    State: ``mean`` and ``square``, each shaped like the parameter.

    Raises:
        ValueError: also if ``early`` is ``"skip"`` and :math:`\beta_2` so small that every step is skipped.
    """
    check_betas(betas, 2)
    check_not_negative("eps", eps)
    check_not_negative("weight_decay", weight_decay)
    check_number("threshold", threshold, 4, math.inf, "[)")
    check_choice("early", early, ("skip", "momentum"))
    least = 1 - 2 / (threshold + 1)  # below which rho_inf, the limit of rho_t, is under the threshold
    if early == "skip" and betas[1] <= least:
        raise ValueError(
            f"betas[1] must be above {least:.6g} for threshold {threshold:g} and early='skip' "
            f"(no step would ever be taken), got {betas[1]!r}"
        )

    def scalars(k):
        factor = rectifier(k.step, k.betas[1], k.threshold)
        rests = gradients_seen(k.step, k.betas[1]) < k.threshold
        return {
            "unbias": 1 / (1 - k.betas[0] ** k.step),
            "adaptive": factor * math.sqrt(1 - k.betas[1] ** k.step),
            "plain": float(rests and early == "momentum"),
            "decays": 0.0 if rests and early == "skip" else k.weight_decay,
        }

    def update(u, p, state, k):
        state = state.averaged(k.betas[0], mean=u).averaged(k.betas[1], square=u * u)
        step = state.mean * k.unbias * precondition(state, k)
        return (step if p is None else step + k.decays * p), state  # inside a subspace there are no weights

    def precondition(state, k):
        return k.adaptive / (state.square.sqrt() + k.eps) + k.plain

    return element(
        update,
        slots=("mean", "square"),
        scalars=scalars,
        precondition=precondition,
        stability=lambda k: 2 * (1 + k.betas[0]) / (1 - k.betas[0]),
        degree=0,
        betas=tuple(betas),
        eps=eps,
        weight_decay=weight_decay,
        threshold=threshold,
    )


@recipe(lr=1e-3)
def RAdam(
    betas: tuple = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    threshold: float = 5.0,
    early: str = "skip",
) -> tuple[Transform, ...]:
    """Adam with a variance rectifier in the place of a warm-up (arXiv 1908.03265), with decoupled decay.

    Equals the released class; with ``early="momentum"`` it equals
    ``torch.optim.RAdam(decoupled_weight_decay=True)``, whose first five steps are as large as the gradient.
    """
    return (rectified_adam(betas, eps, weight_decay, threshold, early),)
