"""A number that is none: from a broken gradient, a step that is far too long, a hole in the data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.plain import digits_mlp, teacher_mlp
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "not finite"
AT = 50


def broken_gradient(seed: int, planted: bool) -> Outcome:
    def poison(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            model[2].weight.grad[0, 0] = float("nan")

    return digits_mlp(seed, AT + 20, before_step=poison)


def far_too_fast(seed: int, planted: bool) -> Outcome:
    opt = None

    def optimizer(params: Iterator[Tensor]) -> torch.optim.Optimizer:
        nonlocal opt
        opt = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        return opt

    def rise(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            opt.param_groups[0]["lr"] *= 1e4

    return teacher_mlp(seed, AT + 50, optimizer, before_step=rise)


def hole_in_the_data(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for step, (images, labels) in enumerate(minibatches(split.train, 64, seed), 1):
            if planted and step == AT:
                images = images.clone()
                images[0, 0, 0, 0] = float("nan")
            yield images, labels

    opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return watched(model, opt, batches(), AT + 20, evaluate=(split.train, split.test))


nan_in_a_gradient = Planted(
    NAME, f"one entry of a gradient NaN at step {AT}", "digits", "MLP", "AdamW", broken_gradient, AT
)
step_far_too_long = Planted(
    NAME,
    f"learning rate times 10 000 at step {AT}",
    "noisy teacher",
    "MLP",
    "SGD, momentum",
    far_too_fast,
    AT,
)
nan_in_an_image = Planted(
    NAME, f"one pixel NaN at step {AT}", "digits", "CNN", "RMSprop", hole_in_the_data, AT
)
