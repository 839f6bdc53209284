"""Gaussian clusters, one label in ten wrong, seen once or twice."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.findings.loop import Outcome
from benchmarks.findings.plain import train
from benchmarks.findings.scenario import Healthy
from thalweg import tasks


def batch_norm(seed: int) -> Outcome:
    split = tasks.noisy_clusters(samples=4000, seed=seed)
    model = tasks.MLP((20, 64, 64, 5), norm="batch", seed=seed)
    return train(model, split, seed, 250, partial(torch.optim.NAdam, lr=2e-3), batch=32)


mlp_nadam = Healthy("noisy clusters, batches of 32", "MLP, batch norm", "NAdam", batch_norm, accuracy=0.8)
