"""AdamP and SGDP (arXiv 2006.08217): no step along weights whose scale does not matter."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_not_negative, check_number, check_unit_interval
from thalweg.optim.adaptive import adam
from thalweg.optim.heavy_ball import momentum as heavy_ball
from thalweg.optim.recipe_class import recipe
from thalweg.optim.transform import Transform, element, part, rows
from thalweg.optim.weight_decay import decay

__all__ = ["SGDP", "AdamP", "decay_over_momentum", "tangent"]


@part
def tangent(
    delta: float = 0.1, weight_decay: float = 0.0, wd_ratio: float = 0.1, momentum: float | None = None
) -> Transform:
    r"""Remove the update's component along weights that look scale-invariant; decay weights, those less.

    .. math:: u' = u - \frac{\langle u, w\rangle}{\|w\|^2} w + \rho\lambda w
        \quad\text{where}\quad \max \frac{|\langle g, w\rangle|}{\|g\|\,\|w\|} < \frac{\delta}{\sqrt n},
        \qquad u' = u + \lambda w \quad\text{elsewhere}

    A weight in front of a normalisation has a gradient :math:`g` (the raw one) at right angles to itself.
    This is tried on each channel, the :math:`n` entries of one first index, of which all must pass; then on
    the whole tensor at once. Vectors and single numbers are only decayed. Put behind ``adam()`` or
    ``momentum()``, whose update has a component along the weight that makes it longer and its steps in
    effect shorter. The component is removed exactly, where the released code adds epsilon to the norm.

    Args:
        delta: :math:`\delta`, at least 0; with 0 nothing is removed.
        weight_decay: :math:`\lambda`, at least 0: decoupled.
        wd_ratio: :math:`\rho`, in [0, 1]: what is left of the decay of weights that look scale-invariant.
        momentum: if given, divide the decay by one less this, as SGDP does. That of a ``momentum()`` before
            it, which groups and schedules may change, is used instead.
    """
    check_not_negative("delta", delta)
    check_not_negative("weight_decay", weight_decay)
    check_number("wd_ratio", wd_ratio, 0, 1)
    own = {"weight_decay": weight_decay}
    if momentum is not None:
        check_unit_interval("momentum", momentum)
        own["momentum"] = momentum

    def scalars(k):
        return {"decay": k.weight_decay / (1.0 if momentum is None else 1 - k.momentum)}

    def measure(u, p, state, k):
        g = k.gradient
        found = tuple(one.sum(1, keepdim=True) for one in (g * p, g * g, p * p, u * p))
        return (*found, torch.full_like(found[0], p.shape[1]))

    def totals(sums, k):
        return (leans(sums, k).double().sum(), *(one.sum() for one in sums))

    def leans(sums, k):
        """Whether the gradient has a component along the weight; no, if one of the two is zero."""
        along, gradient, weights, _, entries = sums
        product = gradient * weights
        square = torch.where(product > 0, along * along / product, 0.0)
        return square * entries >= k.delta * k.delta

    def gate(k):
        """Whether all rows, or the whole tensor, look scale-invariant; else there is nothing to remove."""
        return (k.sums[5] == 0) | ~leans(k.sums[6:], k)

    def update(u, p, state, k):
        row, leaning, layer = k.sums[:5], k.sums[5], k.sums[6:]
        by_row, by_layer = leaning == 0, ~leans(layer, k)
        _, _, weights, pushed, _ = (torch.where(by_row, *pair) for pair in zip(row, layer, strict=True))
        share = torch.where((by_row | by_layer) & (weights > 0), pushed / weights, 0.0)
        kept = torch.where(by_row | by_layer, k.wd_ratio, torch.ones_like(weights))
        return u + (k.decay * kept - share).to(u.dtype) * p, state

    return rows(
        update,
        measure=measure,
        totals=totals,
        gate=gate,
        gradient=True,
        scalars=scalars,
        applies=lambda p, k: p.dim() > 1,
        otherwise=decay(weight_decay) if momentum is None else decay_over_momentum(weight_decay, momentum),
        follows=("momentum",) if momentum is not None else (),
        degree=1,
        delta=delta,
        wd_ratio=wd_ratio,
        **own,
    )


@part
def decay_over_momentum(weight_decay: float = 0.0, momentum: float = 0.9) -> Transform:
    r"""Add :math:`\lambda w / (1 - \mu)` to the update: what is left of SGDP for vectors.

    Args:
        weight_decay: :math:`\lambda`, at least 0.
        momentum: :math:`\mu`, in [0, 1); that of a ``momentum()`` before it is used instead.
    """
    check_not_negative("weight_decay", weight_decay)
    check_unit_interval("momentum", momentum)

    return element(
        lambda u, p, state, k: (u + k.decay * p, state),
        scalars=lambda k: {"decay": k.weight_decay / (1 - k.momentum)},
        follows=("momentum",),
        degree=1,
        weight_decay=weight_decay,
        momentum=momentum,
    )


@recipe(lr=1e-3)
def AdamP(
    betas: tuple = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
    nesterov: bool = False,
) -> tuple[Transform, ...]:
    """AdamW without the step along weights that look scale-invariant (arXiv 2006.08217)."""
    return adam(betas, eps, nesterov=nesterov), tangent(delta, weight_decay, wd_ratio)


@recipe(lr=1e-3)
def SGDP(
    momentum: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    delta: float = 0.1,
    wd_ratio: float = 0.1,
) -> tuple[Transform, ...]:
    """Momentum without the step along weights that look scale-invariant (arXiv 2006.08217).

    The decay is decoupled, and divided by one less the momentum. The first gradient is not dampened, as in
    ``torch.optim.SGD``; the released code dampens it.
    """
    return heavy_ball(momentum, dampening, nesterov), tangent(delta, weight_decay, wd_ratio, momentum)
