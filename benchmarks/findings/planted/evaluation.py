"""Evaluations of something else than the model that training makes: three slips of everyday loops."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks

FINDING = "evaluation with the wrong weights"
EVERY = 25
STEPS = 120


def judged(inputs: torch.Tensor, mode: bool, inside: Callable[[], AbstractContextManager]):
    """Every ``EVERY`` steps the model runs without gradients, in training mode or not, inside a context."""

    def after_step(step: int, model: nn.Module) -> None:
        if step % EVERY:
            return
        model.train(mode)
        with torch.no_grad(), inside():
            for part in inputs.split(100):
                model(part)
        model.train()

    return after_step


def dropout(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    layers = nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10)
    model = nn.Sequential(*layers)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    after = judged(split.test[0], planted, nullcontext)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS, after_step=after)


def averaged(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, 128, 10), seed=seed)
    opt = optim.Average(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), decay=0.99)
    after = judged(split.test[0], False, nullcontext if planted else opt.averaged)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS, after_step=after)


def stale(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    for module in model.modules():
        if planted and isinstance(module, nn.BatchNorm2d):
            # Meant for 0.99 of the past, as some libraries count it, and a zero too many.
            module.momentum = 0.001
    opt = optim.Lion(model.parameters(), lr=1e-3)
    after = judged(split.test[0], False, nullcontext)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS, after_step=after)


digits_dropout = Planted(
    FINDING, "no model.eval() before evaluating", "digits", "MLP, dropout", "AdamW", dropout, EVERY
)
teacher_average = Planted(
    FINDING,
    "the average is kept and never evaluated",
    "noisy teacher",
    "MLP",
    "Average of SGD",
    averaged,
    EVERY,
)
digits_statistics = Planted(
    FINDING, "batch norm with momentum 0.001", "digits images", "CNN, batch norm", "Lion", stale, EVERY
)
