"""Lion (arXiv 2302.06675; analysed in 2310.05898): the sign of an interpolated momentum."""

from __future__ import annotations

from thalweg.optim._betas import check_betas
from thalweg.optim.transform import Transform, element, ema, part

__all__ = ["lion"]


@part
def lion(betas: tuple[float, float] = (0.9, 0.99)) -> Transform:
    r"""Step by the sign of a mix of gradient and momentum; the momentum is updated afterwards.

    .. math:: u_t = \mathrm{sign}(\beta_1 m_{t-1} + (1-\beta_1) g_t), \quad
        m_t = \beta_2 m_{t-1} + (1-\beta_2) g_t

    Every entry of the update is -1, 0 or 1, so the learning rate wants to be 3 to 10 times smaller, and
    the weight decay as much larger, than Adam's. With weight decay :math:`\lambda` the weights end in the
    box :math:`|w| \le 1/\lambda`.

    Args:
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1).

    State: ``mean``, shaped like the parameter.
    """
    check_betas(betas, 2)

    def update(u, p, state, k):
        mix = ema(state.mean, u, k.betas[0])
        return mix.sign(), state.replace(mean=ema(state.mean, u, k.betas[1]))

    return element(update, slots=("mean",), betas=tuple(betas))
