"""Grokfast (arXiv 2405.20233): amplify the slowly varying part of the gradient."""

from __future__ import annotations

from thalweg._core.checks import check_not_negative, check_unit_interval
from thalweg.optim.transform import Transform, element, part

__all__ = ["slow_component"]


@part
def slow_component(decay: float = 0.98, gain: float = 2.0) -> Transform:
    r"""Add an amplified moving average of the gradient to it.

    .. math:: m_1 = g_1, \quad m_t = \alpha m_{t-1} + (1-\alpha) g_t, \qquad u_t = g_t + \lambda m_t

    A constant gradient is multiplied by :math:`1+\lambda`, one that alternates in sign by
    :math:`1+\lambda(1-\alpha)/(1+\alpha)`.

    Args:
        decay: :math:`\alpha`, in [0, 1).
        gain: :math:`\lambda`, at least 0: how much of the slow part is added.

    State: ``mean``, shaped like the parameter.
    """
    check_unit_interval("decay", decay)
    check_not_negative("gain", gain)

    def scalars(k):
        return {"kept": 0.0 if k.step == 1 else k.decay}

    def update(u, p, state, k):
        state = state.averaged(k.kept, mean=u)
        return u + k.gain * state.mean, state

    return element(update, slots=("mean",), scalars=scalars, degree=1, decay=decay, gain=gain)
