"""The effective learning rate shrinks: normalised weights that grew too fast and are not decayed."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

FINDING = "shrinking effective learning rate"
JUMP = 60
LASTING = 10


def burst(opt: torch.optim.Optimizer, times: float):
    """The learning rate times ``times`` for ten steps."""

    def before_step(step: int, model: nn.Module) -> None:
        for group in opt.param_groups:
            if step == JUMP:
                group["lr"] *= times
            elif step == JUMP + LASTING:
                group["lr"] /= times

    return before_step


def cnn(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = burst(opt, 30) if planted else None
    return watched(model, opt, minibatches(split.train, 64, seed), 160, before_step=before)


def mlp(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, 128, 128, 10), norm="batch", seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = burst(opt, 100) if planted else None
    return watched(model, opt, minibatches(split.train, 64, seed), 160, before_step=before)


def teacher(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, 128, 128, 10), norm="batch", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.99 if planted else 0.9)
    return watched(model, opt, minibatches(split.train, 64, seed), 250)


digits_sgd = Planted(
    FINDING,
    f"learning rate times 30 in steps {JUMP} to {JUMP + LASTING - 1}",
    "digits images",
    "CNN",
    "SGD, momentum",
    cnn,
    JUMP,
)
digits_adamw = Planted(
    FINDING,
    f"learning rate times 100 in steps {JUMP} to {JUMP + LASTING - 1}",
    "digits",
    "MLP, batch norm",
    "AdamW",
    mlp,
    JUMP,
)
teacher_sgd = Planted(
    FINDING, "momentum 0.99 without decay", "noisy teacher", "MLP, batch norm", "SGD, momentum", teacher
)
