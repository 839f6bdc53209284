"""Adam's direction (arXiv 1412.6980): the mean gradient over the root of its mean square."""

from __future__ import annotations

from thalweg._core.checks import check_not_negative
from thalweg.optim._betas import check_betas
from thalweg.optim.transform import Transform, element, ema, part, plus

__all__ = ["adam"]


@part
def adam(
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    eps_uncorrected: bool = False,
    nesterov: bool = False,
) -> Transform:
    r"""Divide the mean of the gradient by the root of its mean square, both corrected for starting at zero.

    .. math:: m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \quad
        u_t = \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}

    Args:
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).
        eps: :math:`\epsilon`, at least 0, added outside the root.
        eps_uncorrected: add it to :math:`\sqrt{v_t}` before the correction, as some released codes do; it
            then counts for more in the first :math:`1/(1-\beta_2)` steps.
        nesterov: look one step ahead: :math:`\beta_1 m_t + (1-\beta_1) g_t` for :math:`m_t` in the update.

    State: ``mean`` and ``square``, each shaped like the parameter.
    """
    check_betas(betas, 2)
    check_not_negative("eps", eps)

    def scalars(k):
        unbias_root = (1 - k.betas[1] ** k.step) ** -0.5
        added = k.eps * unbias_root if eps_uncorrected else k.eps
        return {"unbias": 1 / (1 - k.betas[0] ** k.step), "unbias_root": unbias_root, "added": added}

    def update(u, p, state, k):
        state = state.averaged(k.betas[0], mean=u).averaged(k.betas[1], square=u * u)
        ahead = ema(state.mean, u, k.betas[0]) if nesterov else state.mean
        return ahead * k.unbias / scale(state, k), state

    def scale(state, k):
        return plus(k.added, state.square.sqrt(), k.unbias_root)

    def precondition(state, k):
        return 1 / scale(state, k)

    def stability(k):
        b = k.betas[0]
        return 2 * (1 + b) / (1 - b) / (1 + 2 * b if nesterov else 1)

    return element(
        update,
        slots=("mean", "square"),
        scalars=scalars,
        precondition=precondition,
        stability=stability,
        degree=0,
        betas=tuple(betas),
        eps=eps,
    )
