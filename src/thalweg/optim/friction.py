"""diffGrad (arXiv 1909.11015): Adam, slowed down where the gradient has hardly changed."""

from __future__ import annotations

import math

from thalweg._core.checks import check_not_negative
from thalweg.optim._betas import check_betas
from thalweg.optim.recipe_class import recipe
from thalweg.optim.transform import Transform, element, part
from thalweg.optim.weight_decay import decay

__all__ = ["DiffGrad", "diffgrad"]


@part
def diffgrad(betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> Transform:
    r"""Adam's direction times a sigmoid of how much each entry of the gradient has changed.

    .. math:: u_t = \sigma(|g_{t-1} - g_t|)\,
        \frac{m_t}{1-\beta_1^t} \frac{\sqrt{1-\beta_2^t}}{\sqrt{v_t} + \epsilon}, \qquad g_0 = 0

    The factor lies between 1/2 and 1 and depends on the scale of the loss: with changes below 0.01, which
    is usual, it is 0.5 to 0.5025 and the step is half of Adam's.

    Args:
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon`, at least 0, added before the bias correction.

    State: ``mean``, ``square`` and ``last``, the last gradient, each shaped like the parameter.
    """
    check_betas(betas, 2)
    check_not_negative("eps", eps)

    def scalars(k):
        return {"unbias": math.sqrt(1 - k.betas[1] ** k.step) / (1 - k.betas[0] ** k.step)}

    def update(u, p, state, k):
        state = state.averaged(k.betas[0], mean=u).averaged(k.betas[1], square=u * u)
        friction = (state.last - u).abs().sigmoid()
        step = friction * state.mean * k.unbias / (state.square.sqrt() + k.eps)
        return step, state.replace(last=u)

    return element(
        update, slots=("mean", "square", "last"), scalars=scalars, degree=0, betas=tuple(betas), eps=eps
    )


@recipe(lr=1e-3)
def DiffGrad(
    betas: tuple = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
) -> tuple[Transform, ...]:
    """Adam with a friction for each entry (arXiv 1909.11015) and L2 regularisation.

    The decay joins the gradient, and so its changes too. Expect Adam at half the learning rate.
    """
    return decay(weight_decay), diffgrad(betas, eps)
