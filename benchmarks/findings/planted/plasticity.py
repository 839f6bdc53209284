"""Loss of plasticity: targets that change again and again, and steps that wear a network out."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, Pair, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

FINDING = "loss of plasticity"
TASK = 60
TASKS = 10


def redrawn(inputs: Tensor, source: torch.Generator) -> Iterator[Pair]:
    """Every ``TASK`` steps each input gets one of ten classes at random."""
    while True:
        labels = torch.randint(0, 10, (len(inputs),), generator=source)
        for _ in range(TASK):
            index = torch.randint(0, len(inputs), (64,), generator=source)
            yield inputs[index], labels[index]


def renamed(inputs: Tensor, labels: Tensor, source: torch.Generator) -> Iterator[Pair]:
    """Every ``TASK`` steps the ten classes change names."""
    while True:
        names = torch.randperm(10, generator=source)
        for _ in range(TASK):
            index = torch.randint(0, len(inputs), (64,), generator=source)
            yield inputs[index], names[labels[index]]


def convolutional(normalised: bool) -> nn.Sequential:
    """Two convolutions and a hidden layer for 8 x 8 images, without normalisation or with layer norm."""

    def norm(channels: int) -> list[nn.Module]:
        return [nn.GroupNorm(1, channels)] if normalised else []

    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), *norm(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, stride=2, padding=1), *norm(16), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(256, 64), *norm(64), nn.ReLU()),
        nn.Linear(64, 10),
    )


def adam(seed: int, planted: bool) -> Outcome:
    source = torch.Generator().manual_seed(seed)
    batches = redrawn(torch.randn(256, 32, generator=source), source)
    model = tasks.MLP((32, 64, 64, 10), norm=None if planted else "layer", seed=seed)
    opt = torch.optim.Adam(model.parameters(), lr=1e-2 if planted else 5e-3)
    return watched(model, opt, batches, TASK * TASKS)


def sgd(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    batches = renamed(split.train[0], split.train[1], torch.Generator().manual_seed(seed))
    model = tasks.MLP((64, 64, 64, 10), norm=None if planted else "layer", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9 if planted else 0.0)
    return watched(model, opt, batches, TASK * TASKS)


def cnn(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    batches = renamed(split.train[0], split.train[1], torch.Generator().manual_seed(seed))
    model = convolutional(normalised=not planted)
    opt = torch.optim.SGD(model.parameters(), lr=0.08, momentum=0.9 if planted else 0.0)
    return watched(model, opt, batches, TASK * TASKS)


redrawn_adam = Planted(
    FINDING, "rate 0.01 without layer norm, for 0.005 with it", "random labels, redrawn", "MLP", "Adam", adam
)
CARRIED = "momentum carried from task to task without layer norm, for none with it"
renamed_sgd = Planted(FINDING, CARRIED, "digits, renamed", "MLP", "SGD, momentum", sgd)
renamed_cnn = Planted(FINDING, CARRIED, "digits images, renamed", "plain CNN", "SGD, momentum", cnn)
