"""The model of free features, as the study of neural collapse uses it: its flow, and one pull."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import nn

from thalweg import optim
from thalweg.probe import class_variability, collapse_path, collapsed_features, pulled_features
from thalweg.studies.study import Trial

K, WIDTH, N = 4, 10, 10  # classes, dimensions, examples a class
LAMBDA, PULL, TIME = 0.05, 10.0, 100.0
# No optimizer takes part in the model: the spec is that of plain descent, which its flow is.
SPEC = dict(optim.spec(optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)))


def flow(arm: str, seed: int) -> Trial:
    features, labels = gaussian(seed)
    path = collapse_path(features, labels, weight_decay=LAMBDA, feature_decay=LAMBDA, time=TIME)
    falls = all(after < before for before, after in pairwise(path.variability))
    predicted = collapsed_features(weight_decay=LAMBDA, feature_decay=LAMBDA).squared_norm
    means = path.features.view(K, N, WIDTH).mean(1)
    numbers = {
        "falls at every reading": float(falls),
        "squared norm of the class means / predicted": means.square().sum(1).mean().item() / predicted,
    }
    score = path.variability[0 if arm == "start" else -1] if falls else math.nan
    return Trial(score, SPEC, (path.times, path.variability), numbers)


def one_pull(arm: str, seed: int) -> Trial:
    decays = {"weight_decay": LAMBDA, "feature_decay": LAMBDA}
    decays["weight_decay" if arm.startswith("weight") else "feature_decay"] *= 4
    noise, labels = gaussian(seed)
    size = math.sqrt(collapsed_features(**decays).squared_norm)
    start = size * (torch.eye(K, WIDTH, dtype=torch.float64)[labels] + 0.1 * noise / math.sqrt(WIDTH))
    before = class_variability(start, labels)
    after = class_variability(pulled_features(start, labels, pull=PULL, **decays), labels)
    most, least = collapsed_features(pull=PULL, **decays).within
    numbers = {"predicted, if all noise lay along the means": most**2, "predicted, across them": least**2}
    return Trial(after / before, SPEC, ((0, 1), (1.0, after / before)), numbers)


def gaussian(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(K * N, WIDTH, generator=source, dtype=torch.float64)
    return features, torch.arange(K).repeat_interleave(N)
