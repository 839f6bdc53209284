"""Plain and braked momentum under gradients that come late, and a quadratic to descend with them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from thalweg import optim
from thalweg.tasks import DelayedGradients

QUADRATIC, EIGENVALUES = 1500, 20


class Late:
    """An optimizer whose closure is called on weights of some steps ago."""

    def __init__(self, optimizer: optim.Descent, params: list[Tensor], delay: int):
        self.optimizer, self.stale = optimizer, DelayedGradients(params, delay)
        self.zero_grad = optimizer.zero_grad

    def step(self, closure: Any) -> Any:
        with self.stale.weights():
            loss = closure()
        self.optimizer.step()
        return loss


def make(params: list[Tensor], lr: float, strength: float) -> optim.Descent:
    filters = (optim.brake(strength),) if strength else ()
    return optim.Descent(params, *filters, optim.momentum(0.9), lr=lr)


def descend(
    seed: int, lr: float, strength: float, delay: int
) -> tuple[dict[str, Any], list[int], list[float]]:
    """Spec, steps and the logarithm of the loss there, relative to the first; a diverging run ends early."""
    source = torch.Generator().manual_seed(seed)
    inside = -3.0 * torch.rand(EIGENVALUES - 2, generator=source, dtype=torch.float64)
    scale = 10 ** torch.cat([torch.tensor([-3.0, 0.0], dtype=torch.float64), inside])
    w = torch.nn.Parameter(torch.randn(EIGENVALUES, generator=source, dtype=torch.float64))
    optimizer = make([w], lr, strength)
    spec, late = dict(optim.spec(optimizer)), Late(optimizer, [w], delay)

    def gradient() -> None:
        w.grad = scale * w.detach()

    def loss() -> float:
        return float((scale * w.detach() ** 2).sum())

    first = loss()
    steps, logs = [0], [0.0]
    for step in range(1, QUADRATIC + 1):
        late.step(gradient)
        if step % 25 == 0:
            now = loss() / first
            steps, logs = [*steps, step], [*logs, math.log10(now) if math.isfinite(now) else math.inf]
            if not now < 1e6:
                break
    return spec, steps, logs
