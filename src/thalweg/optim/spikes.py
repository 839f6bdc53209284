"""SPAM's two parts (arXiv 2501.06842): cut gradient spikes and reset the momentum; ease in again."""

from __future__ import annotations

import math

import torch

from thalweg._core.checks import check_count, check_positive, check_unit_interval
from thalweg.optim.transform import Transform, element, part

__all__ = ["clip_spikes", "ease_in"]


@part
def clip_spikes(
    threshold: float = 5000.0, grace: int = 20, reset_every: int | None = None, square_decay: float = 0.999
) -> Transform:
    r"""Limit each entry to :math:`\sqrt{\theta v}`, and zero the chain's state every so often.

    .. math:: g_i \leftarrow \mathrm{sign}(g_i) \sqrt{\theta v_i} \quad\text{where}\quad g_i^2 > \theta v_i

    :math:`v` is the mean square *before* this step, without bias correction: the one that the
    preconditioner behind it keeps (``adam``, ``two_speed``), or else its own. An entry with
    :math:`v_i = 0` is left alone; it could otherwise never move again.

    Args:
        threshold: :math:`\theta`, greater than 0.
        grace: steps at the start, and after each reset, without clipping.
        reset_every: steps between resets of the state of the whole chain (500 in the paper); None for
            never. Put :func:`ease_in` behind the preconditioner: the steps that follow are too large.
        square_decay: decay of its own mean square, if it has to keep one.

    State: none behind which a preconditioner keeps ``square``, else ``square``, shaped like the parameter.
    """
    check_positive("threshold", threshold)
    check_count("grace", grace, low=0)
    check_unit_interval("square_decay", square_decay)
    if reset_every is not None:
        check_count("reset_every", reset_every)

    def scalars(k):
        since = k.step % reset_every if reset_every else k.step
        return {"armed": float(k.step >= grace and since >= grace)}

    def update(u, p, state, k):
        limit = (k.threshold * state.square).sqrt()
        spike = (u.abs() > limit) & (state.square > 0) & (k.armed > 0)
        u = torch.where(spike, u.sign() * limit, u)
        return u, state.averaged(k.square_decay, square=u * u)

    return element(
        update,
        slots=("square",),
        borrows=("square",),
        scalars=scalars,
        restart=(lambda k: k.step % reset_every == 0) if reset_every else None,
        degree=1,
        threshold=threshold,
        square_decay=square_decay,
    )


@part
def ease_in(every: int = 500, steps: int = 150) -> Transform:
    r"""Scale the update from 0.01 up to 1 along a cosine after each reset, but not at the very start.

    .. math:: k = 1 - 0.99\,(1 + \cos(\pi s/(N+1)))/2 \quad\text{for } s < N \text{ steps since the reset}

    Args:
        every: steps between resets, as in :func:`clip_spikes`.
        steps: :math:`N`, at least 0.
    """
    check_count("every", every)
    check_count("steps", steps, low=0)

    def scalars(k):
        since = k.step % every
        easing = k.step >= every and since < steps
        return {"ease": 1 - 0.495 * (1 + math.cos(math.pi * since / (steps + 1))) if easing else 1.0}

    return element(lambda u, p, state, k: (u * k.ease, state), scalars=scalars, degree=1)
