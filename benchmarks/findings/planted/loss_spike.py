"""Loss spikes of known cause: a bad batch, a learning rate that jumps, a second moment that lags behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

FINDING = "loss spike"
Pair = tuple[Tensor, Tensor]


def scaled(batches: Iterator[Pair], step: int, times: float) -> Iterator[Pair]:
    """The inputs of one batch are ``times`` too large, as when one file was not normalised."""
    for index, (inputs, targets) in enumerate(batches, 1):
        yield (inputs * times if index == step else inputs), targets


def misaligned(batches: Iterator[Pair], step: int) -> Iterator[Pair]:
    """The labels of one batch are those of the examples beside."""
    for index, (inputs, targets) in enumerate(batches, 1):
        yield inputs, (targets.roll(1) if index == step else targets)


def bad_labels(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, 128, 128, 10), seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = minibatches(split.train, 50, seed)
    return watched(model, opt, misaligned(batches, 150) if planted else batches, 180)


def large_inputs(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, 128, 128, 10), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batches = minibatches(split.train, 64, seed)
    return watched(model, opt, scaled(batches, 120, 20.0) if planted else batches, 150)


def jump(opt: torch.optim.Optimizer, step: int, times: float) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(opt, lambda done: times if done + 1 >= step else 1.0)


def rate_jump_cnn(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = jump(opt, 120, 40.0 if planted else 1.0)
    return watched(model, opt, minibatches(split.train, 50, seed), 150, schedule=schedule)


def rate_jump_gpt(seed: int, planted: bool) -> Outcome:
    text = tasks.library_text(max_characters=200_000)
    model = tasks.GPT(97, 32, layers=1, heads=2, width=32, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(seed)
    schedule = jump(opt, 120, 40.0 if planted else 1.0)
    return watched(model, opt, iter(lambda: text.batch("train", 8, 32, source), None), 150, schedule=schedule)


def shifted(seed: int, planted: bool) -> Outcome:
    """Clusters so far apart that gradients die away, until from step 250 on the inputs are noisy.

    By then the second moment has forgotten what a gradient is: with decay 0.999 the next steps are several
    times the learning rate, in all weights at once.
    """
    split = tasks.noisy_clusters(samples=2000, spread=0.5, noisy_labels=0.0, seed=seed)
    model = tasks.MLP((20, 128, 128, 5), seed=seed)
    opt = torch.optim.Adam(model.parameters(), lr=1e-2)
    source = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[Pair]:
        for step, (inputs, targets) in enumerate(minibatches(split.train, 50, seed), 1):
            noise = torch.randn(inputs.shape, generator=source)
            yield inputs + (noise if planted and step >= 250 else 0.0), targets

    return watched(model, opt, batches(), 290)


labels_out_of_line = Planted(
    FINDING, "labels of one batch shifted by one", "digits", "MLP", "AdamW", bad_labels, onset=150
)
inputs_too_large = Planted(
    FINDING,
    "inputs of one batch 20 times too large",
    "noisy teacher",
    "MLP",
    "SGD, momentum",
    large_inputs,
    120,
)
rate_jump_convolutions = Planted(
    FINDING, "learning rate times 40 at step 120", "digits", "CNN", "SGD, momentum", rate_jump_cnn, onset=120
)
rate_jump_transformer = Planted(
    FINDING, "learning rate times 40 at step 120", "text", "GPT", "AdamW", rate_jump_gpt, onset=120
)
second_moment_lags = Planted(
    FINDING, "noisy inputs from step 250, after a quiet time", "clusters", "MLP", "Adam", shifted, onset=250
)
