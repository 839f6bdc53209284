"""Spectral decoupling (arXiv 2011.09468): a penalty on the logits where weight decay would stand."""

from __future__ import annotations

import torch
from torch import Tensor

from thalweg._core.checks import check_not_negative

__all__ = ["spectral_decoupling"]


def spectral_decoupling(
    logits: Tensor, coefficient: float = 0.1, *, target: float | Tensor = 0.0, centred: bool = False
) -> Tensor:
    r"""Add to the loss so that a strong feature does not starve the others (arXiv 2011.09468).

    .. math:: c \cdot \mathrm{mean}\,(f - \mu)^2

    over the batch, and over the classes if there are several. It replaces weight decay: with both, strong
    features are favoured again. The mean is without the factor one half of the paper's text, as in its code.
    Useful coefficients differ by orders of magnitude between tasks, from 1e-3 for one logit to 0.1 and above.
    Training accuracy may fall; on data with a shortcut that is the point.

    Args:
        logits: any shape, before softmax or sigmoid.
        coefficient: :math:`c`, at least 0.
        target: :math:`\mu`, where the logits are drawn to; broadcast with ``logits``.
        centred: take the mean over the last dimension off first, since a shift of all classes changes no
            prediction; not for one logit an example.

    Returns:
        A scalar, in float32 at least.

    Raises:
        ValueError: ``coefficient`` is negative, there are no logits, or ``centred`` with less than two
            classes.
    """
    check_not_negative("coefficient", coefficient)
    if not logits.numel():
        raise ValueError(f"logits must hold at least one number, got shape {tuple(logits.shape)}")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if centred:
        if not logits.dim() or logits.shape[-1] < 2:
            raise ValueError(f"centred must be False for one logit an example, got {tuple(logits.shape)}")
        wide = wide - wide.mean(-1, keepdim=True)
    return coefficient * (wide - target).square().mean()
