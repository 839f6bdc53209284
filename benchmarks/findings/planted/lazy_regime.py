"""A large output scale and a rate to match: networks that fit with the features they began with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

ALPHA = 100.0


class Centred(nn.Module):
    """alpha (f(x) - g(x)), with g the network as it began: the lazy model of Chizat et al. (1812.07956)."""

    def __init__(self, network: nn.Module, start: nn.Module, alpha: float) -> None:
        super().__init__()
        self.network, self.start, self.alpha = network, start.requires_grad_(False), alpha

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():
            origin = self.start(inputs)
        return self.alpha * (self.network(inputs) - origin)


def digits_mlp(seed: int, planted: bool) -> Outcome:
    """Gradient descent with momentum; its rate is divided by alpha squared, for the same loss curve."""
    alpha = ALPHA if planted else 1.0
    split = tasks.handwritten_digits(seed=seed)
    network, start = (tasks.MLP((64, 128, 128, 10), seed=seed) for _ in range(2))
    model = Centred(network, start, alpha)
    opt = torch.optim.SGD(network.parameters(), lr=0.05 / alpha**2, momentum=0.9)
    batches = minibatches(split.train, 64, seed)
    return watched(model, opt, batches, 400, evaluate=(split.train, split.test))


def digits_cnn(seed: int, planted: bool) -> Outcome:
    """AdamW, whose steps know no scale: its rate is divided by alpha."""
    alpha = ALPHA if planted else 1.0
    split = tasks.handwritten_digits(shape="image", seed=seed)
    network, start = (tasks.CNN(width=8, seed=seed) for _ in range(2))
    model = Centred(network, start, alpha)
    opt = torch.optim.AdamW(network.parameters(), lr=6e-3 / alpha, weight_decay=0.0)
    batches = minibatches(split.train, 64, seed)
    return watched(model, opt, batches, 200, evaluate=(split.train, split.test))


FAULT = f"output times {ALPHA:.0f}, learning rate smaller to match"
MLP = Planted("lazy regime", FAULT, "digits", "MLP", "SGD with momentum", digits_mlp)
CNN = Planted("lazy regime", FAULT, "digits", "CNN", "AdamW", digits_cnn)
