"""How far Adam's second moment lags behind the gradients that it is to scale (arXiv 1412.6980)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thalweg._core.checks import check_count
from thalweg.probe._named import NamedParams, named
from thalweg.probe._thinned import thinned
from thalweg.probe.cost import costs

__all__ = ["SecondMomentLag", "second_moment_lag"]

# What torch's optimizers call the running mean of the squared gradient; thalweg's end in ``square``.
SQUARES = ("exp_avg_sq", "square_avg", "square")
# The largest one so far, which AMSGrad divides by.
LARGEST = ("max_exp_avg_sq", "largest")


@dataclass(frozen=True)
class SecondMomentLag:
    """Mean of the squared gradient over the second moment that the coming step divides by.

    Attributes:
        ratio: over all entries that were looked at; about 1 where gradients are as large as they were.
        per_layer: the same by parameter.
    """

    ratio: float
    per_layer: dict[str, float]


@torch.no_grad()
@costs(0, 0, memory="a thousand numbers a tensor")
def second_moment_lag(
    optimizer: torch.optim.Optimizer,
    params: NamedParams,
    *,
    entries: int = 1024,
    scale: float | Tensor | None = None,
) -> SecondMomentLag:
    r"""Mean of :math:`g_t^2 / \hat v_t` as the coming step will see it.

    .. math:: v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \qquad \hat v_t = v_t / (1 - \beta_2^t)

    With AMSGrad :math:`\hat v` is the largest so far. Far above 1, the gradient has outgrown what the
    optimizer remembers: with :math:`\beta_2` near 1 the steps to come are too long, up to
    :math:`1/\sqrt{1-\beta_2}` times the learning rate. No entry can exceed
    :math:`(1-\beta_2^t)/(1-\beta_2)`; entries that never had a gradient are left out.

    Args:
        optimizer: Adam, AdamW, RMSprop or Adadelta (whose :math:`v` is not corrected), or any that keeps
            ``exp_avg_sq``, ``square_avg`` or a state whose name ends in ``square``.
        params: a model, a mapping of names to parameters, or (name, parameter) pairs, with gradients in
            ``.grad``; those that have none, or no state, are left out.
        entries: of each tensor at most so many are looked at, spread evenly over it.
        scale: what the gradients are still multiplied by.

    Raises:
        ValueError: parameters come without names, or none has both a gradient and a second moment of its
            shape.
    """
    check_count("entries", entries)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names, gradients, squares, largest, decays, kept = [], [], [], [], [], []
    for name, p in named(params, "params").items():
        found = _kept(optimizer, p, SQUARES)
        if found is None or p.grad is None or p.grad.is_sparse or id(p) not in groups:
            continue
        past, correction = _decay(optimizer, groups[id(p)], optimizer.state[p])
        names.append(name)
        gradients.append(thinned(p.grad.detach().flatten(), entries).float())
        squares.append(thinned(found.flatten(), entries).float())
        # The mean is kept, and corrected, after it has been compared with the largest so far.
        most = _kept(optimizer, p, LARGEST)
        largest.append(torch.zeros_like(squares[-1]) if most is None else thinned(most.flatten(), entries))
        decays.append(past)
        kept.append(correction)
    if not names:
        raise ValueError("optimizer must keep a second moment of parameters that have a gradient, got none")
    sizes = torch.tensor([len(one) for one in gradients])
    device = gradients[0].device

    def spread(values: list[float]) -> Tensor:
        return torch.tensor(values).repeat_interleave(sizes).to(device)

    gradient, decay = torch.cat(gradients), spread(decays)
    if scale is not None:
        gradient = gradient / torch.as_tensor(scale).to(gradient)
    fresh = gradient.square()
    second = decay * torch.cat(squares) + (1 - decay) * fresh
    second = torch.maximum(second, torch.cat(largest))
    known = second > 0
    ratios = torch.where(known, fresh * spread(kept) / torch.where(known, second, 1.0), 0.0)
    sums, counts = (
        torch.stack([part.sum() for part in values.split(sizes.tolist())])
        for values in (ratios, known.float())
    )
    layers = (sums / counts.clamp_min(1.0)).tolist()
    return SecondMomentLag(
        (sums.sum() / counts.sum().clamp_min(1.0)).item(), dict(zip(names, layers, strict=True))
    )


def _kept(optimizer: torch.optim.Optimizer, p: Tensor, names: tuple[str, ...]) -> Tensor | None:
    """The first state of ``p``'s shape whose name, or its last part, is one of these."""
    for key, value in optimizer.state.get(p, {}).items():
        named = str(key) in names or str(key).endswith(names[-1])
        if named and isinstance(value, Tensor) and value.shape == p.shape and value.is_floating_point():
            return value
    return None


def _decay(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], state: Mapping[str, Any]
) -> tuple[float, float]:
    """The decay of the second moment, and what corrects it at the coming step for having begun at zero."""
    for kind, name in ((torch.optim.RMSprop, "alpha"), (torch.optim.Adadelta, "rho")):
        if isinstance(optimizer, kind):
            return float(group[name]), 1.0
    betas = group.get("betas")
    decay = float(betas[1]) if betas is not None and len(betas) > 1 else 0.999
    return decay, 1 - decay ** (float(state.get("step", math.inf)) + 1)
