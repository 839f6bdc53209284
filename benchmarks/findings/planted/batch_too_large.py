"""Batches far larger than the noise in the gradient asks for."""

from __future__ import annotations

import torch

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "batch larger than it needs to be"


def clusters(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_clusters(4096, spread=1.0, noisy_labels=0.0, seed=seed)
    model = tasks.MLP((20, 64, 5), activation="tanh", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    return watched(model, opt, minibatches(split.train, 4096 if planted else 32, seed), 200)


def digits(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(1024, shape="image", seed=seed)
    model = tasks.CNN(width=4, seed=seed)
    # At this rate the noise scale of minibatch gradients stays at 40 to 65; at 1e-3 it is 105 to 160 from
    # step 60 on, for which a batch of 1024 is not ten times too large.
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return watched(model, opt, minibatches(split.train, 1024 if planted else 32, seed), 160)


WHOLE = Planted(NAME, "batches of 4096 for 32", "clusters", "MLP", "SGD", clusters)
WHOLE_CNN = Planted(NAME, "batches of 1024 for 32", "digits", "CNN", "AdamW", digits)
