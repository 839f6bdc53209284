"""Units that fall silent: shut, driven off by steps too long, or pushed down by a decay of the biases."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome
from benchmarks.findings.plain import digits_mlp, teacher_mlp
from benchmarks.findings.scenario import Planted

NAME = "dormant units growing"
AT = 100


def silenced(seed: int, planted: bool) -> Outcome:
    def shut(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            with torch.no_grad():
                model[2].bias[:77] = -1000

    return digits_mlp(seed, AT + 100, after_step=shut)


def too_fast(seed: int, planted: bool) -> Outcome:
    opt = None

    def optimizer(params: Iterator[Tensor]) -> torch.optim.Optimizer:
        nonlocal opt
        opt = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        return opt

    def rise(step: int, model: nn.Module) -> None:
        if planted and step >= AT:
            opt.param_groups[0]["lr"] = 2.0

    return teacher_mlp(seed, AT + 150, optimizer, before_step=rise)


shut_units = Planted(
    NAME, f"60 % of a layer shut by their biases behind step {AT}", "digits", "MLP", "AdamW", silenced, AT
)
steps_too_long = Planted(
    NAME, f"learning rate times 20 from step {AT} on", "noisy teacher", "MLP", "SGD, momentum", too_fast, AT
)
