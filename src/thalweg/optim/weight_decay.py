"""Weight decay, coupled or decoupled (arXiv 1711.05101) by its place in the chain."""

from __future__ import annotations

from thalweg._core.checks import check_not_negative
from thalweg.optim.transform import Transform, element, part, plus

__all__ = ["decay"]


@part
def decay(weight_decay: float = 0.01, after_step: bool = False) -> Transform:
    r"""Add :math:`\lambda w` to the update: decoupled behind a preconditioner, L2 regularisation before it.

    Decoupled decay shrinks the weights by :math:`1 - \eta\lambda` a step, with learning rate :math:`\eta`.

    Args:
        weight_decay: :math:`\lambda`, at least 0.
        after_step: shrink the weights that the step has already moved, as SPAM's released code does.
    """
    check_not_negative("weight_decay", weight_decay)

    def update(u, p, state, k):
        moved = u * (1 - k.lr * k.weight_decay) if after_step else u
        return plus(moved, p, k.weight_decay), state

    return element(update, degree=1, weight_decay=weight_decay)
