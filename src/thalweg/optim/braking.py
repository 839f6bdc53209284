"""Adaptive braking (arXiv 2007.01397): shrink a gradient that follows the velocity, grow one against it."""

from __future__ import annotations

from thalweg._core.checks import check_choice, check_not_negative, check_number, check_positive
from thalweg.optim.transform import Transform, model, part, rows, tensor

__all__ = ["brake"]

SCOPES = {"row": rows, "tensor": tensor, "global": model}


@part
def brake(
    strength: float = 0.5,
    granularity: str = "row",
    eps: float = 1e-8,
    velocity: str = "buffer",
    momentum: float = 0.9,
) -> Transform:
    r"""Multiply the gradient by :math:`1 - \rho \cos(g, v)`, with the velocity before this step.

    .. math:: \alpha = 1 - \rho\,\frac{\langle g, v\rangle}{\max(\|g\|\,\|v\|, \epsilon)}

    Meant for stale gradients, in front of ``momentum()`` or ``adam()``: a late gradient that still pushes
    the way that the weights already go counts for less. Without delay it gains nothing. :math:`v` is a sum
    or mean of gradients, so that the weights move along :math:`-v`; while it is 0, :math:`\alpha = 1`.

    Args:
        strength: :math:`\rho`, at least 0. Above 1 a gradient that agrees with the velocity is reversed; at
            1 with one angle for everything such gradients vanish, and training may stall.
        granularity: one angle per ``"row"`` (output feature or channel; a vector is one row), per
            ``"tensor"``, or one for all parameters of the optimizer, ``"global"``.
        eps: :math:`\epsilon`, greater than 0: a product of norms below it brakes less.
        velocity: what holds :math:`v` in a later link: the ``"buffer"`` of ``momentum``, the ``"mean"`` of
            ``adam``, ``two_speed`` or ``lion``.
        momentum: decay of its own velocity, if no later link keeps one.

    State: none in front of a link that keeps ``velocity``, else that slot, shaped like the parameter.
    """
    check_not_negative("strength", strength)
    check_choice("granularity", granularity, SCOPES)
    check_positive("eps", eps)
    check_choice("velocity", velocity, ("buffer", "mean"))
    check_number("momentum", momentum, 0, 1, "[)")

    def measure(u, p, state, k):
        wide, v = u.double(), state.slots[velocity].double()
        products = (wide * v, wide * wide, v * v)
        if granularity == "row":
            return tuple(one.sum(1, keepdim=True) for one in products)
        return tuple(one.sum() for one in products)

    def update(u, p, state, k):
        agreement, gradient, speed = k.sums
        cosine = agreement / (gradient * speed).sqrt().clamp(min=eps)
        u = u * (1 - k.strength * cosine).to(u.dtype)
        return u, state.replace(**{velocity: momentum * state.slots[velocity] + u})

    return SCOPES[granularity](
        update, measure=measure, slots=(velocity,), borrows=(velocity,), degree=1, strength=strength
    )
