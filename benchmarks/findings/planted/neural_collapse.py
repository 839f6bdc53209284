"""Batch normalisation, weight decay, training far past zero error; the twin stops soon behind it."""

from __future__ import annotations

import torch

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks


def clusters_mlp(seed: int, planted: bool) -> Outcome:
    """Five clusters, with labels that are all right."""
    split = tasks.noisy_clusters(samples=500, spread=1.5, noisy_labels=0.0, seed=seed)
    model = tasks.MLP((20, 64, 64, 64, 5), norm="batch", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    steps = 700 if planted else 60
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, optim.linear_decay(700))
    return watched(model, opt, minibatches(split.train, 100, seed), steps, schedule=schedule)


def digits_mlp(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(train_size=500, seed=seed)
    model = tasks.MLP((64, 64, 64, 64, 10), norm="batch", seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    steps = 600 if planted else 40
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, optim.linear_decay(600))
    batches = minibatches(split.train, 100, seed)
    return watched(model, opt, batches, steps, evaluate=(split.train, split.test), schedule=schedule)


FAULT = "trained far past zero error"
CLUSTERS = Planted("neural collapse reached", FAULT, "clusters", "MLP", "SGD with momentum", clusters_mlp)
DIGITS = Planted("neural collapse reached", FAULT, "digits", "MLP", "AdamW", digits_mlp)
