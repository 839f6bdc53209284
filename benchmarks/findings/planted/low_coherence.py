"""Labels that have nothing to do with their inputs, learnt by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks

NAME = "low coherence"


def shuffled(pair: tuple[Tensor, Tensor], seed: int, planted: bool) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(pair[1]), generator=torch.Generator().manual_seed(10_000 + seed))
    return (pair[0], pair[1][order]) if planted else pair


def digits(seed: int, planted: bool) -> Outcome:
    train = shuffled(tasks.handwritten_digits(512, seed=seed).train, seed, planted)
    model = tasks.MLP((64, 128, 128, 10), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=5e-4)
    return watched(model, opt, minibatches(train, 64, seed), 400)


def images(seed: int, planted: bool) -> Outcome:
    train = shuffled(tasks.handwritten_digits(512, shape="image", seed=seed).train, seed, planted)
    model = tasks.CNN(width=8, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.004, momentum=0.9)
    return watched(model, opt, minibatches(train, 128, seed), 300)


def clusters(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_clusters(512, spread=1.0, noisy_labels=0.0, seed=seed)
    train = shuffled(split.train, seed, planted)
    model = tasks.MLP((20, 128, 128, 5), seed=seed)
    opt = optim.Lion(model.parameters(), lr=3e-4)
    return watched(model, opt, minibatches(train, 64, seed), 400)


DIGITS = Planted(NAME, "labels shuffled", "digits", "MLP", "AdamW", digits)
IMAGES = Planted(NAME, "labels shuffled", "digits", "CNN", "SGD, momentum", images)
CLUSTERS = Planted(NAME, "labels shuffled", "clusters", "MLP", "Lion", clusters)
