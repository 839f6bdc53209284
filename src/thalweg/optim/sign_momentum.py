"""Lion (arXiv 2302.06675; analysed in 2310.05898): the sign of a mixed momentum, and its relatives."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_choice, check_positive
from thalweg.optim._betas import check_betas
from thalweg.optim.transform import Transform, element, ema, part, tensor

__all__ = ["lion"]

KAPPAS = {
    "sign": lambda c, k: c.sign(),
    "quadratic": lambda c, k: c,
    "huber": lambda c, k: (c / k.width).clamp(-1, 1),
    "dead_zone": lambda c, k: torch.where(c.abs() > k.width, c.sign(), 0.0),
}


@part
def lion(betas: tuple[float, float] = (0.9, 0.99), kappa: str = "sign", width: float = 1e-3) -> Transform:
    r"""Step by the sign of a mix of gradient and momentum; the momentum is updated afterwards.

    .. math:: u_t = \nabla\kappa(\beta_1 m_{t-1} + (1-\beta_1) g_t), \quad
        m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t

    Every entry of the update is -1, 0 or 1, so the learning rate wants to be 3 to 10 times smaller, and
    the weight decay as much larger, than Adam's. With weight decay :math:`\lambda` the weights end in the
    box :math:`|w| \le 1/\lambda`. Lion-:math:`\kappa` puts the gradient of another convex function in the
    sign's place, and so another bound:

    ============= ======================================= ================================================
    ``kappa``     :math:`\nabla\kappa(c)`                 with weight decay :math:`\lambda`
    ============= ======================================= ================================================
    ``sign``      :math:`\mathrm{sign}(c)`                :math:`|w_i| \le 1/\lambda`
    ``l2``        :math:`c/\|c\|`, over a whole tensor    :math:`\|w\| \le 1/\lambda`
    ``quadratic`` :math:`c`                               no bound: momentum with L2 regularisation
    ``huber``     :math:`c/\delta` clipped to [-1, 1]     :math:`|w_i| \le 1/\lambda`, no jitter near rest
    ``dead_zone`` :math:`\mathrm{sign}(c)` where          :math:`|w_i| \le 1/\lambda`; small entries only
                  :math:`|c| > \delta`, else 0            decay
    ============= ======================================= ================================================

    Args:
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1); the analysis wants :math:`\beta_2 > \beta_1`.
        kappa: one of the above.
        width: :math:`\delta` of ``huber`` and ``dead_zone``, greater than 0, in units of the gradient.

    State: ``mean``, shaped like the parameter.
    """
    check_betas(betas, 2)
    check_choice("kappa", kappa, (*KAPPAS, "l2"))
    check_positive("width", width)

    def mixed(u, state, k):
        mix = ema(state.mean, u, k.betas[0])
        return mix, state.averaged(k.betas[1], mean=u)

    def update(u, p, state, k):
        mix, state = mixed(u, state, k)
        return KAPPAS[kappa](mix, k), state

    def measure(u, p, state, k):
        mix = mixed(u, state, k)[0].double()
        return ((mix * mix).sum(),)

    def unit_update(u, p, state, k):
        mix, state = mixed(u, state, k)
        (square,) = k.sums
        return mix * torch.where(square > 0, square.rsqrt(), 0.0), state

    hyper = {
        "betas": tuple(betas),
        "degree": None if kappa in ("huber", "dead_zone") else 0,
        **({"width": width} if kappa in ("huber", "dead_zone") else {}),
    }
    if kappa == "l2":
        return tensor(unit_update, measure=measure, slots=("mean",), **hyper)
    return element(update, slots=("mean",), **hyper)
