"""What an optimizer will multiply a gradient by, once that gradient has entered its second moment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from thalweg._core.factored import Factored, at_most

__all__ = ["behind"]


def behind(
    optimizer: torch.optim.Optimizer,
    params: Sequence[Tensor],
    diagonals: Sequence[Tensor | Factored],
    gradients: Sequence[Tensor | None],
) -> list[Tensor | Factored]:
    r"""The diagonals :math:`1/\sqrt v`, where a step with these gradients bounds them.

    Such a step adds :math:`(1-\beta_2) g^2` to the second moment, so that no entry of the diagonal is above
    :math:`1/(\sqrt{1-\beta_2}\,|g|)`. That tells where gradients are rare: a diagonal of 1/eps, from a past
    without any, says nothing of the step that brings one.

    Args:
        optimizer: holds ``params``; nothing is bounded where its groups have neither ``betas`` nor ``alpha``.
        diagonals: of :func:`thalweg.probe.preconditioner_of`, shaped like the parameters; of what works in a
            subspace its own diagonal is bounded by the gradient's part there.
        gradients: shaped like the parameters, or None.
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    bounded: list[Tensor | Factored] = []
    for p, diagonal, gradient in zip(params, diagonals, gradients, strict=True):
        group = groups[id(p)]
        decay = group["betas"][1] if "betas" in group else group.get("alpha")
        if decay is not None and gradient is not None:
            share = (1 - decay) ** 0.5
            if isinstance(diagonal, Factored):
                diagonal = diagonal.bounded(gradient, share)
            else:
                diagonal = at_most(diagonal, gradient, share)
        bounded.append(diagonal)
    return bounded
