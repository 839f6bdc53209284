"""Gradient clipping by the norm over all parameters (arXiv 1211.5063)."""

from __future__ import annotations

from thalweg._core.checks import check_positive
from thalweg.optim.transform import Transform, model, part

__all__ = ["clip_norm"]


@part
def clip_norm(max_norm: float = 1.0) -> Transform:
    r"""Scale the whole update by :math:`\min(1, c/\|u\|)`, one norm over all parameters of the optimizer.

    The squares are summed in float64, so that large finite gradients don't overflow. A NaN or infinite
    gradient makes the norm so too, and the step NaN, as with ``torch.nn.utils.clip_grad_norm_``.

    Args:
        max_norm: :math:`c`, greater than 0. Half to ten times the usual norm is the paper's advice.
    """
    check_positive("max_norm", max_norm)

    def measure(u, p, state, k):
        wide = u.double()
        return ((wide * wide).sum(),)

    def update(u, p, state, k):
        (square,) = k.sums
        return u * (k.max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0), state

    return model(update, measure=measure, degree=1, max_norm=max_norm)
