"""The sharpness above which an optimizer's steps grow instead of settling (arXiv 2110.04369)."""

from __future__ import annotations

import math
from typing import Any

import torch

from thalweg.probe.cost import costs
from thalweg.probe.preconditioner import KNOWN

__all__ = ["stability_limit"]


def _momentum_factor(group: dict[str, Any]) -> float:
    momentum = float(group["momentum"])
    if group.get("nesterov"):
        return 2 * (1 + momentum) / (1 + 2 * momentum)
    return 2 * (1 + momentum) / (1 - float(group.get("dampening", 0)) if momentum else 1)


@costs(0, 0, memory="none")
def stability_limit(optimizer: torch.optim.Optimizer, group: dict[str, Any] | int = 0) -> float:
    r"""Largest sharpness at which steps of this learning rate are stable on a quadratic loss.

    With learning rate :math:`\eta` and momentum :math:`\beta`:

    ========================  =============================================
    gradient descent          :math:`2/\eta`
    heavy ball                :math:`2(1+\beta)/\eta`, over :math:`1-` dampening
    Nesterov                  :math:`2(1+\beta)/((1+2\beta)\eta)`
    Adam, AdamW               :math:`2(1+\beta_1)/((1-\beta_1)\eta)`, 38/η at 0.9
    RMSprop                   as gradient descent or heavy ball
    SAM, not normalized       :math:`(\sqrt{1 + 4\rho L} - 1) / 2\rho` of the inner one's limit L
    ========================  =============================================

    Adam's and RMSprop's are limits for :func:`preconditioned_sharpness`, with the preconditioner frozen;
    SGD's for plain :func:`sharpness`. Training that hovers at the limit is normal (the edge of stability).

    Weight decay is not subtracted. SGD's :math:`\lambda` (an L2 term) adds :math:`\lambda` to every
    eigenvalue, so the loss without that term has :math:`\lambda` less room; Adam's and RMSprop's L2 term adds
    :math:`\lambda P`. AdamW's decoupled decay multiplies the limit by :math:`1 - \eta\lambda/2`.

    Args:
        optimizer: ``torch.optim.SGD``, ``Adam``, ``AdamW`` or ``RMSprop``, or any with a method
            ``stability_limit(group)``, which is then asked; :class:`thalweg.optim.SAM` of one of these
            (arXiv 2302.08692).
        group: a parameter group of it, or its index.

    Returns:
        Units of loss over parameter squared (Adam, RMSprop: one over learning rate); infinite at rate 0.

    Raises:
        ValueError: the optimizer is of no known type, maximizes, or has no such group.
    """
    if not hasattr(optimizer, "param_groups"):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(group, int):
        if not 0 <= group < len(optimizer.param_groups):
            last = len(optimizer.param_groups) - 1
            raise ValueError(f"group must be a parameter group or an index in [0, {last}], got {group}")
        group = optimizer.param_groups[group]
    edge = getattr(optimizer, "edge", None)
    if edge is not None:
        return float(edge(stability_limit(optimizer.inner, group)))  # type: ignore[attr-defined]
    ask = getattr(optimizer, "stability_limit", None)
    if ask is not None:
        return float(ask(group))
    if isinstance(optimizer, torch.optim.SGD | torch.optim.RMSprop):
        factor = _momentum_factor(group)
    elif isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        first = float(group["betas"][0])
        factor = 2 * (1 + first) / (1 - first)
    else:
        raise ValueError(
            f"optimizer must be one of {KNOWN}, or have a method stability_limit(group); "
            f"got {type(optimizer).__name__}"
        )
    if group.get("maximize"):
        raise ValueError("optimizer must minimize, got a group with maximize=True")
    rate = float(group["lr"])
    return factor / rate if rate > 0 else math.inf
