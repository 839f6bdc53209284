"""How far one example's gradient is from that of all, with labels as they are and with smoothed ones."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional


class SmoothedError(NamedTuple):
    """Squared distances over the variance: ``delta`` of even labels, ``error`` of 1 / (1 + delta) of it."""

    delta: float
    error: float


def example_gradients(model: nn.Module, x: Tensor, y: Tensor, share: float) -> Tensor:
    """Gradients (examples, parameters) of the cross-entropy with so much of the label made even."""

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, params, (x[None],))
        return functional.cross_entropy(logits, y[None], label_smoothing=share)

    params = {name: p.detach() for name, p in model.named_parameters()}
    found = vmap(grad(loss), in_dims=(None, 0, 0))(params, x, y)
    return torch.cat([g.flatten(1) for g in found.values()], 1)


def smoothed_error(model: nn.Module, x: Tensor, y: Tensor) -> SmoothedError:
    """Both numbers at the weights that the model has; the examples stand for all."""
    plain = example_gradients(model, x, y, 0.0)
    centre = plain.mean(0)
    variance = (plain - centre).square().sum(1).mean()

    def distance(share: float) -> float:
        return float((example_gradients(model, x, y, share) - centre).square().sum(1).mean() / variance)

    delta = distance(1.0)
    return SmoothedError(delta, distance(1 / (1 + delta)))
