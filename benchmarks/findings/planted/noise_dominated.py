"""Batches of one or two examples at a learning rate that suits larger ones."""

from __future__ import annotations

from itertools import islice

import torch

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "noise-dominated batch"
SWITCH = 200


def clusters(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_clusters(seed=seed)
    model = tasks.MLP((20, 64, 5), activation="tanh", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    return watched(model, opt, minibatches(split.train, 1 if planted else 32, seed), 500)


def digits(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, 64, 64, 10), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return watched(model, opt, minibatches(split.train, 2 if planted else 64, seed), 500)


def shrunk(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, 64, 64, 10), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def batches():
        yield from islice(minibatches(split.train, 64, seed), SWITCH - 1)
        yield from minibatches(split.train, 1 if planted else 64, seed)

    return watched(model, opt, batches(), 600)


SMALL = Planted(NAME, "batches of 1 for 32", "clusters", "MLP", "SGD", clusters)
SMALL_ADAM = Planted(NAME, "batches of 2 for 64", "digits", "MLP", "AdamW", digits)
SHRUNK = Planted(
    NAME, f"batches of 1 for 64 from step {SWITCH}", "digits", "MLP", "SGD, momentum", shrunk, SWITCH
)
