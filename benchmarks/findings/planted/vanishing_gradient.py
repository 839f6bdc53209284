"""Gradients that vanish: squashing layers, small weights, no normalisation, a short memory."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

FINDING = "vanishing gradient"
STEPS = 120


def stacked(seed: int, planted: bool) -> Outcome:
    """Ten layers of logistic units, whose slope is 1/4 at most; the twin's are tanh."""
    split = tasks.handwritten_digits(seed=seed)
    activation = "sigmoid" if planted else "tanh"
    model = tasks.MLP((64, *[64] * 10, 10), activation=activation, init="xavier", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS)


def small_weights(seed: int, planted: bool) -> Outcome:
    """Twelve layers of tanh units, whose first weights are 0.3 times what Xavier's rule says."""
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, *[64] * 12, 10), activation="tanh", init="xavier", seed=seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.3 if planted and weight.ndim == 2 else 1.0)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS)


class Plain(nn.Module):
    """Twelve 3 x 3 convolutions with ReLU and torch's first weights, batch normalisation or not."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(12):
            layers.append(nn.Conv2d(8 if index else 1, 8, 3, padding=1))
            layers += [nn.BatchNorm2d(8), nn.ReLU()] if norm else [nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(8, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


def convolutions(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = Plain(norm=not planted)
    opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return watched(model, opt, minibatches(split.train, 32, seed), 60)


def forgetful(seed: int, planted: bool) -> Outcome:
    """A recurrent network of spectral radius 0.5 that is asked about what was 15 to 27 steps ago."""
    split = tasks.temporal_order(length=30, seed=seed)
    model = tasks.RNN(6, 50, 4, radius=0.5 if planted else 1.0, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    return watched(model, opt, minibatches(split.train, 20, seed), 60)


deep_sigmoid = Planted(FINDING, "ten layers of logistic units", "digits", "MLP", "SGD, momentum", stacked)
weights_too_small = Planted(
    FINDING, "first weights 0.3 times Xavier's, twelve layers", "noisy teacher", "MLP", "AdamW", small_weights
)
plain_convolutions = Planted(
    FINDING, "twelve convolutions without normalisation", "digits", "CNN", "RMSprop", convolutions
)
short_memory = Planted(
    FINDING, "spectral radius 0.5 over 30 steps", "temporal order", "RNN", "SGD", forgetful
)
