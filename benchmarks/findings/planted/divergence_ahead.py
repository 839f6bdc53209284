"""Runs that are about to diverge: rates far beyond what curvature bears, and weights that feed themselves."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

FINDING = "divergence ahead"


def schedule(opt: torch.optim.Optimizer, step: int, growth: float, most: float):
    """From ``step`` on the rate is ``growth`` times larger at every step, up to ``most`` times."""
    return torch.optim.lr_scheduler.LambdaLR(opt, lambda done: min(most, growth ** max(0, done + 2 - step)))


def jump_descent(seed: int, planted: bool) -> Outcome:
    """Gradient descent whose rate jumps to 100 times what it was."""
    split = tasks.noisy_clusters(seed=seed)
    model = tasks.MLP((20, 64, 64, 5), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    steps = schedule(opt, 100, 100.0, 100.0) if planted else None
    return watched(model, opt, minibatches(split.train, 100, seed), 130, schedule=steps)


def ramp_momentum(seed: int, planted: bool) -> Outcome:
    """A rate that grows by 5 % at every step and never stops."""
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, 128, 128, 10), activation="tanh", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    steps = schedule(opt, 100, 1.05, 1e6) if planted else None
    return watched(model, opt, minibatches(split.train, 128, seed), 260, schedule=steps)


def jump_transformer(seed: int, planted: bool) -> Outcome:
    text = tasks.library_text(max_characters=200_000)
    model = tasks.GPT(97, 32, layers=1, heads=2, width=32, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(seed)
    steps = schedule(opt, 100, 100.0, 100.0) if planted else None
    return watched(model, opt, iter(lambda: text.batch("train", 8, 32, source), None), 130, schedule=steps)


def wrong_decay(seed: int, planted: bool) -> Outcome:
    """Weight decay of the wrong sign, applied by hand: all weights grow by 3 % at every step."""
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def decay(step: int, model: nn.Module) -> None:
        if planted and step >= 80:
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(1.03)

    return watched(model, opt, minibatches(split.train, 50, seed), 200, after_step=decay)


rate_jump = Planted(
    FINDING, "learning rate times 100 at step 100", "clusters", "MLP", "SGD", jump_descent, onset=100
)
rate_ramp = Planted(
    FINDING,
    "learning rate grows 5 % a step from step 100",
    "noisy teacher",
    "MLP",
    "SGD, momentum",
    ramp_momentum,
    100,
)
rate_jump_text = Planted(
    FINDING, "learning rate times 100 at step 100", "text", "GPT", "AdamW", jump_transformer, onset=100
)
decay_of_the_wrong_sign = Planted(
    FINDING, "weights grow 3 % a step from step 80", "digits", "CNN", "SGD, momentum", wrong_decay, onset=80
)
