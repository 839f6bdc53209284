"""A learning rate that is too high for the sharpness, or a sharpness that rises to meet it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, cross_entropy, watched
from benchmarks.findings.plain import digits_mlp
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks
from thalweg.probe import sharpness

NAME = "edge of stability"
AT = 100


def descent(seed: int, planted: bool) -> Outcome:
    split = tasks.noisy_clusters(samples=256, seed=seed)
    model = tasks.MLP((20, 32, 5), activation="tanh", seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)

    def jump(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            top = sharpness(lambda: cross_entropy(model, split.train), list(model.parameters())).top
            opt.param_groups[0]["lr"] = 6 * 2 / top

    return watched(model, opt, repeat(split.train), AT + 60, before_step=jump)


def adam_on_a_quadratic(seed: int, planted: bool) -> Outcome:
    """As gradients shrink, Adam's steps at a constant rate come to the edge and stay there."""
    scales, steps = torch.logspace(0, 2, 20), 600
    model = nn.Linear(20, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, 20, generator=torch.Generator().manual_seed(seed)))
    opt = torch.optim.Adam(model.parameters(), lr=3e-2, betas=(0.9, 0.95))
    schedule = None
    if not planted:
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, optim.linear_decay(steps // 2, end=1e-4))

    def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 0.5 * (scales * model.weight.square()).sum()

    batch = torch.ones(4, 20), torch.zeros(4)
    return watched(model, opt, repeat(batch), steps, loss_fn=loss_fn, schedule=schedule)


def momentum_on_minibatches(seed: int, planted: bool) -> Outcome:
    opt = None

    def optimizer(params: Iterator[Tensor]) -> torch.optim.Optimizer:
        nonlocal opt
        opt = torch.optim.SGD(params, lr=0.02, momentum=0.9)
        return opt

    def rise(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            opt.param_groups[0]["lr"] *= 50

    return digits_mlp(seed, AT + 60, optimizer, before_step=rise)


rate_above_the_limit = Planted(
    NAME,
    f"learning rate six times 2/sharpness at step {AT}",
    "noisy clusters, whole batch",
    "MLP",
    "SGD",
    descent,
    AT,
)
constant_rate = Planted(
    NAME,
    "constant learning rate while gradients vanish",
    "quadratic",
    "linear",
    "Adam",
    adam_on_a_quadratic,
)
rate_times_fifty = Planted(
    NAME,
    f"learning rate times 50 at step {AT}",
    "digits",
    "MLP",
    "SGD, momentum",
    momentum_on_minibatches,
    AT,
)
