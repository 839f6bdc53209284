"""Grokfast with a window (arXiv 2405.20233): amplify the mean of the last gradients."""

from __future__ import annotations

import torch

from thalweg._core.checks import check_count, check_not_negative
from thalweg.optim.transform import Transform, part, whole

__all__ = ["windowed_component"]


@part
def windowed_component(
    window: int = 100, gain: float = 5.0, warmup: bool = True, mean: bool = True
) -> Transform:
    r"""Add an amplified mean of the last gradients, this one among them, to the gradient.

    .. math:: u_t = g_t + \frac{\lambda}{w} \sum_{i=0}^{w-1} g_{t-i}

    Args:
        window: :math:`w`, at least 1: how many gradients.
        gain: :math:`\lambda`, at least 0: how much of the mean is added.
        warmup: leave the first :math:`w - 1` gradients as they are; else add the mean of those so far.
        mean: add their mean; else their sum.

    State: ``last``, the gradients themselves, of shape (w, \*parameter): a hundred times the memory of
    :func:`slow_component` at the default; and ``total``, their sum. It is kept by adding and subtracting,
    and added up anew every w steps, so that rounding errors don't gather.
    """
    check_count("window", window)
    check_not_negative("gain", gain)

    def like(p):
        return torch.view_as_real(p) if p.is_complex() else p

    def update(u, p, state, k):
        step = int(k.step)
        slot = state.last[(step - 1) % window]
        state.total.sub_(slot)
        slot.copy_(u)
        state.total.add_(slot)
        if step % window == 0:
            torch.sum(state.last, 0, out=state.total)
        filled = min(step, window)
        if warmup and filled < window:
            return u, state
        return u + (k.gain / filled if mean else k.gain) * state.total, state

    return whole(
        update,
        slots=("last", "total"),
        fresh={
            "last": lambda p, k: torch.zeros(window, *like(p).shape, dtype=like(p).dtype, device=p.device),
            "total": lambda p, k: torch.zeros_like(like(p), memory_format=torch.contiguous_format),
        },
        degree=1,
        gain=gain,
    )
