"""Handwritten digits: constant and decaying rates, dropout, norms, averaging, shortcuts, batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome
from benchmarks.findings.plain import clipping, digits_cnn, digits_mlp, momentum, train
from benchmarks.findings.scenario import Healthy
from thalweg import optim, tasks


def dropout(seed: int) -> Outcome:
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 64), nn.ReLU(), nn.Dropout(0.2)
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    rmsprop = partial(torch.optim.RMSprop, lr=1e-3)
    return train(model, tasks.handwritten_digits(seed=seed), seed, 400, rmsprop, batch=32)


def layer_norm(seed: int) -> Outcome:
    model = tasks.MLP((64, 128, 128, 10), norm="layer", seed=seed)
    lion = partial(optim.Lion, lr=3e-4, weight_decay=0.1)
    split = tasks.handwritten_digits(seed=seed)
    return train(model, split, seed, 300, lion, warm=True, before_step=clipping(1.0))


def biased(seed: int) -> Outcome:
    """Convolutions with biases in front of batch norm, as most people write them: no gradient moves those."""
    layers: list[nn.Module] = []
    for incoming, outgoing, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 2)):
        convolution = nn.Conv2d(incoming, outgoing, 3, stride, padding=1)
        layers += [convolution, nn.BatchNorm2d(outgoing), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
    split = tasks.handwritten_digits(shape="image", seed=seed)
    return train(model, split, seed, 200, partial(torch.optim.Adam, lr=3e-3))


def residual(seed: int) -> Outcome:
    model = tasks.ResNet(width=8, stages=3, blocks=1, seed=seed)
    split = tasks.handwritten_digits(shape="image", seed=seed)
    return train(model, split, seed, 150, partial(torch.optim.SGD, lr=0.1), batch=128)


def averaged(params: Iterator[Tensor]) -> torch.optim.Optimizer:
    return optim.Average(torch.optim.SGD(params, lr=0.05, momentum=0.9), decay=0.99)


mlp_adamw = Healthy("digits", "MLP", "AdamW", lambda seed: digits_mlp(seed, 400), accuracy=0.9)
cnn_momentum = Healthy(
    "digits, batches of 128",
    "CNN, batch norm",
    "SGD, momentum, cosine",
    lambda seed: digits_cnn(seed, 200, momentum, batch=128, warm=True),
    accuracy=0.9,
)
cnn_large_batches = Healthy(
    "digits, batches of 512",
    "CNN, batch norm",
    "AdamW",
    lambda seed: digits_cnn(seed, 120, partial(torch.optim.AdamW, lr=3e-3), batch=512),
    accuracy=0.9,
)
mlp_dropout = Healthy("digits, batches of 32", "MLP, dropout", "RMSprop", dropout, accuracy=0.9)
mlp_lion = Healthy("digits", "MLP, layer norm", "Lion, clipped, cosine", layer_norm, accuracy=0.9)
mlp_averaged = Healthy(
    "digits",
    "MLP",
    "SGD, momentum, averaged",
    lambda seed: digits_mlp(seed, 400, averaged),
    accuracy=0.9,
)
cnn_biased = Healthy("digits", "CNN, biases before batch norm", "Adam", biased, accuracy=0.9)
resnet = Healthy("digits, batches of 128", "ResNet, batch norm", "SGD", residual, accuracy=0.9)
