"""AMSGrad (arXiv 1904.09237): Adam whose denominator remembers its largest mean square for ever."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_choice, check_not_negative
from thalweg.optim._betas import check_betas
from thalweg.optim.recipe_class import recipe
from thalweg.optim.transform import Transform, element, part
from thalweg.optim.weight_decay import decay

__all__ = ["AMSGrad", "amsgrad"]

EPS = {"torch": 1e-8, "paper": 0.0}


@part
def amsgrad(
    betas: tuple[float, float] = (0.9, 0.999), eps: float | None = None, bias_correction: str = "torch"
) -> Transform:
    r"""Divide the mean gradient by the root of the largest mean square that there has been.

    .. math:: \hat v_t = \max(\hat v_{t-1}, v_t), \quad
        u_t = \frac{m_t / (1-\beta_1^t)}{\sqrt{\hat v_t / (1-\beta_2^t)} + \epsilon}

    An entry whose gradient is rare and large then moves the right way on average, where Adam, which
    forgets the large gradient before the next one, may end at the worst point of a convex problem. The
    price: one early spike slows its entry down for good. The guarantee wants a learning rate that falls
    like :math:`1/\sqrt t`.

    Args:
        betas: :math:`(\beta_1, \beta_2)` of mean and mean square, each in [0, 1).
        eps: :math:`\epsilon`, at least 0; None for 1e-8 with torch's correction and 0, as in the paper,
            without. An entry whose gradients have all been 0 rests, also where :math:`\epsilon` is 0.
        bias_correction: ``"torch"`` as above, like ``torch.optim.Adam(amsgrad=True)``: the maximum is taken
            before the correction, so that in the first :math:`1/(1-\beta_2)` steps the denominator may
            still fall; ``"paper"`` corrects neither.

    State: ``mean``, ``square`` and ``largest``, each shaped like the parameter.
    """
    check_betas(betas, 2)
    check_choice("bias_correction", bias_correction, EPS)
    eps = EPS[bias_correction] if eps is None else check_not_negative("eps", eps)
    corrects = bias_correction == "torch"

    def scalars(k):
        if not corrects:
            return {"unbias": 1.0, "unbias_root": 1.0}
        return {"unbias": 1 / (1 - k.betas[0] ** k.step), "unbias_root": (1 - k.betas[1] ** k.step) ** -0.5}

    def update(u, p, state, k):
        state = state.averaged(k.betas[0], mean=u).averaged(k.betas[1], square=u * u)
        state = state.replace(largest=torch.maximum(state.largest, state.square))
        return state.mean * k.unbias * precondition(state, k), state

    def precondition(state, k):
        divisor = state.largest.sqrt() * k.unbias_root + k.eps
        return torch.where(divisor > 0, 1 / divisor, 0.0)

    return element(
        update,
        slots=("mean", "square", "largest"),
        scalars=scalars,
        precondition=precondition,
        stability=lambda k: 2 * (1 + k.betas[0]) / (1 - k.betas[0]),
        degree=0,
        betas=tuple(betas),
        eps=eps,
    )


@recipe(lr=1e-3)
def AMSGrad(
    betas: tuple = (0.9, 0.999),
    eps: float | None = None,
    weight_decay: float = 0.0,
    bias_correction: str = "torch",
) -> tuple[Transform, ...]:
    """Adam over the running maximum of its mean square (arXiv 1904.09237), with decoupled weight decay.

    Equals ``torch.optim.AdamW(amsgrad=True)``, whose decay is 0.01 by default, or, with
    ``bias_correction="paper"``, the paper's algorithm. Its projection onto a feasible set is yours to make
    after the step; onto a box it is a plain clamp.
    """
    return amsgrad(betas, eps, bias_correction), decay(weight_decay)
