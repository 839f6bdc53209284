"""Heavy-ball and Nesterov momentum, in the form of torch.optim.SGD."""

from __future__ import annotations

from thalweg._core.checks import check_number, check_unit_interval
from thalweg.optim.transform import Transform, element, part

__all__ = ["momentum"]


def still(k):
    if k.momentum:
        raise ValueError(f"momentum must stay 0 in an optimizer made without its buffer, got {k.momentum:g}")
    return {}


@part
def momentum(momentum: float = 0.9, dampening: float = 0.0, nesterov: bool = False) -> Transform:
    r"""Accumulate the gradient: :math:`b_t = \mu b_{t-1} + (1-\tau) g_t`, with :math:`b_1 = g_1`.

    The update is :math:`b_t`, or :math:`g_t + \mu b_t` with ``nesterov``. Without momentum there is no
    buffer to dampen: the update is the gradient, whatever :math:`\tau`.

    Args:
        momentum: :math:`\mu`, in [0, 1).
        dampening: :math:`\tau`, in [0, 1]; must be 0 with ``nesterov``.
        nesterov: look one step ahead.

    State: ``buffer``, shaped like the parameter; none if made with :math:`\mu = 0`, which then cannot rise.
    """
    check_unit_interval("momentum", momentum)
    check_number("dampening", dampening, 0, 1)
    if nesterov and dampening:
        raise ValueError(f"dampening must be 0 with nesterov=True, got {dampening!r}")

    if momentum == 0:
        return element(
            lambda u, p, state, k: (u, state),
            scalars=still,
            stability=lambda k: 2.0,
            degree=1,
            momentum=momentum,
            dampening=dampening,
        )

    def scalars(k):
        return {"fresh": 1.0 if k.step == 1 or k.momentum == 0 else 1 - k.dampening}

    def update(u, p, state, k):
        buffer = k.momentum * state.buffer + k.fresh * u
        return (u + k.momentum * buffer if nesterov else buffer), state.replace(buffer=buffer)

    def stability(k):
        b = k.momentum
        if b == 0:
            return 2.0
        return 2 * (1 + b) / (1 + 2 * b) if nesterov else 2 * (1 + b) / (1 - k.dampening)

    return element(
        update,
        slots=("buffer",),
        scalars=scalars,
        stability=stability,
        degree=1,
        momentum=momentum,
        dampening=dampening,
    )
