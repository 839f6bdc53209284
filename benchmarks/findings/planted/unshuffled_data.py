"""Data in the order of their classes, which nobody has shuffled."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.findings.loop import Outcome, Pair, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "unshuffled data"


def in_order(pair: Pair, size: int) -> Iterator[Pair]:
    """Pass after pass, one class after the other."""
    inputs, targets = pair
    while True:
        for index in targets.argsort(stable=True).split(size):
            yield inputs[index], targets[index]


def clusters(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_clusters(2048, noisy_labels=0.0, seed=seed)
    model = tasks.MLP((20, 64, 5), activation="tanh", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    batches = in_order(split.train, 32) if planted else minibatches(split.train, 32, seed)
    return watched(model, opt, batches, 300)


def digits(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(1024, shape="image", seed=seed)
    model = tasks.CNN(width=4, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = in_order(split.train, 32) if planted else minibatches(split.train, 32, seed)
    return watched(model, opt, batches, 300)


SORTED = Planted(NAME, "one class after the other", "clusters", "MLP", "SGD", clusters)
SORTED_CNN = Planted(NAME, "one class after the other", "digits", "CNN", "AdamW", digits)
