"""The orthogonal-gradient rule (perpGrad, arXiv 2501.04697): no step along the weights themselves."""

from __future__ import annotations

import torch

from thalweg.optim.transform import Transform, part, tensor

__all__ = ["orthogonal"]

# A residual this small against the gradient (squared) is rounding: scaling it up would make noise a step.
NEGLIGIBLE = 1e-12


@part
def orthogonal(rescale: bool = True) -> Transform:
    r"""Remove from each tensor's gradient its component along the tensor.

    .. math:: g' = g - \frac{\langle w, g\rangle}{\langle w, w\rangle} w

    Scaling up the weights lowers the cross entropy of a network that already classifies everything
    rightly, without changing any prediction, until the softmax saturates; this rule takes that way out.
    A zero tensor, a single number and a gradient parallel to the weights keep their gradient.

    Args:
        rescale: give :math:`g'` the norm of :math:`g`, as the released code does (the paper does not).
    """

    def measure(u, p, state, k):
        wide, weights = u.double(), p.double()
        return (weights * wide).sum(), (weights * weights).sum(), (wide * wide).sum()

    def update(u, p, state, k):
        along, weights, before = k.sums
        left = before - along * along / weights
        usable = (weights > 0) & (left > NEGLIGIBLE * before)
        share = torch.where(usable, along / weights, 0.0)
        scale = torch.where(usable, (before / left).sqrt(), 1.0) if rescale else 1.0
        return (u - share * p) * scale, state

    return tensor(update, measure=measure, degree=1)
