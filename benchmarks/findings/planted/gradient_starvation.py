"""A patch of the image that says the label, beside the digit that says it too."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks.findings.loop import Outcome, Pair, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "gradient starvation"


def two_classes(pair: Pair, planted: bool) -> Pair:
    """Digits below five or not; the first four pixels are bright or dark accordingly."""
    inputs, targets = pair[0].clone(), (pair[1] < 5).long()
    if planted:
        inputs.view(len(inputs), 64)[:, :4] = 6.0 * targets[:, None] - 3
    return inputs, targets


def ten_classes(pair: Pair, planted: bool) -> Pair:
    """One of the first ten pixels is bright, and it is that of the label."""
    inputs, targets = pair[0].clone(), pair[1]
    if planted:
        inputs.view(len(inputs), 64)[:, :10] = 5 * F.one_hot(targets, 10) - 0.5
    return inputs, targets


def digits(seed: int, planted: bool) -> Outcome:
    train = two_classes(tasks.handwritten_digits(1024, seed=seed).train, planted)
    model = tasks.MLP((64, 64, 64, 2), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return watched(model, opt, minibatches(train, 64, seed), 200)


def images(seed: int, planted: bool) -> Outcome:
    train = two_classes(tasks.handwritten_digits(1024, shape="image", seed=seed).train, planted)
    model = tasks.CNN(classes=2, width=8, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return watched(model, opt, minibatches(train, 64, seed), 120)


def ten(seed: int, planted: bool) -> Outcome:
    train = ten_classes(tasks.handwritten_digits(1024, seed=seed).train, planted)
    model = tasks.MLP((64, 64, 64, 10), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return watched(model, opt, minibatches(train, 64, seed), 300)


TWO = Planted(NAME, "four pixels tell the class", "digits below 5", "MLP", "AdamW", digits)
TWO_CNN = Planted(NAME, "four pixels tell the class", "digits below 5", "CNN", "SGD, momentum", images)
TEN = Planted(NAME, "one of ten pixels tells the digit", "digits", "MLP", "AdamW", ten)
