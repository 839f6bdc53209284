"""Wrong labels, which can only be learnt by heart."""

from __future__ import annotations

from itertools import repeat

import torch

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "memorised, not generalising"


def clusters(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_clusters(samples=200, noisy_labels=0.8 if planted else 0.0, seed=seed)
    model = tasks.MLP((20, 256, 5), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    return watched(model, opt, repeat(split.train), 300, evaluate=(split.train, split.test))


def images(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    inputs, labels = (part[:256] for part in split.train)
    if planted:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    model = tasks.CNN(width=16, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = minibatches((inputs, labels), 64, seed)
    return watched(model, opt, batches, 300, evaluate=((inputs, labels), split.test))


wrong_labels = Planted(
    NAME, "four in five labels wrong", "noisy clusters, 200 examples", "MLP", "AdamW", clusters
)
shuffled_labels = Planted(NAME, "labels shuffled", "digits, 256 examples", "CNN", "SGD, momentum", images)
