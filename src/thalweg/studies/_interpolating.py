"""Two-layer ReLU networks that fit 20 random points, from a sharp start: where SGD's stability is tested."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thalweg.tasks import MLP

POINTS, FEATURES, HIDDEN = 20, 5, 100


class Regression:
    """Standard normal inputs and targets, and a network 5-100-1 in float64 with torch's weights times two."""

    def __init__(self, seed: int):
        self.source = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(POINTS, FEATURES, generator=self.source, dtype=torch.float64)
        self.targets = torch.randn(POINTS, 1, generator=self.source, dtype=torch.float64)
        self.model: nn.Module = MLP((FEATURES, HIDDEN, 1), seed=seed).double()
        self.params = list(self.model.parameters())
        with torch.no_grad():
            for p in self.params:
                if p.ndim == 2:
                    p.mul_(2)

    def loss(self, rows: Tensor | slice = slice(None)) -> Tensor:
        """Half the mean square error of some points."""
        return half_square(self.model(self.inputs[rows]), self.targets[rows])


def half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean() / 2
