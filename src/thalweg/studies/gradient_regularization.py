"""Gradient regularization (arXiv 2210.02720): is the forward difference the better penalty, and cheaper?"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.flop_counter import FlopCounterMode

from thalweg import optim
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import MLP, accuracy, cross_entropy, noisy_teacher

STEPS, PENALISED = 300, grid(lr=(0.02, 0.05, 0.1, 0.2), weight=(0.1, 0.3, 1.0, 3.0))
RATES = (0.005, 0.01, 0.015, 0.02, 0.022, 0.025, 0.028, 0.03, 0.033, 0.036, 0.04, 0.045, 0.05, 0.07, 0.1, 0.2)
PLAIN = grid(lr=RATES, weight=(0.0,))
ONE, DIAGONAL = grid(lr=(0.05,), weight=(0.1,)), grid(lr=(0.01,), weight=(0.05,))
EXACT, FORWARD, BACKWARD, SMALL, NONE = "exact", "forward", "backward", "forward, small step", "none"


def rules(good: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(good), "direction only": at_least(some), "not reproduced": otherwise}


def comparison(other: str) -> dict[str, Any]:
    return {
        "setting": f"accuracy, against {other}",
        "metric": "test accuracy after 300 steps, learning rate and weight tuned (a diverged run counts as "
        f"0): forward with step 0.3 minus {other}",
        "verdict": rules(0.01, 0.002),
        "effect": "method - baseline",
        "worst": 0.0,
        "axes": ("steps", "test accuracy"),
        "baseline": Arm(other, PENALISED),
        "method": Arm(FORWARD, PENALISED),
        "references": (Arm(NONE, PLAIN),),
    }


def shrinkage(other: str) -> Setting:
    return Setting(
        setting=f"implicit bias, against {other}",
        metric="-mean log(u v / u0 v0) in nats when the loss of a diagonal linear network reaches 1e-6 (a "
        f"diverged run counts as -1): forward with step 0.2 minus {other}",
        verdict=rules(0.005, 0.001),
        effect="method - baseline",
        worst=-1.0,
        axes=("steps", "shrinkage of u v (nats)"),
        baseline=Arm(other, DIAGONAL),
        method=Arm(FORWARD, DIAGONAL),
    )


STUDY = Study(
    paper="gradient-regularization",
    claim="The forward finite difference generalises better than the backward one and better than double "
    "backpropagation, most at a relatively large step, for less time.",
    **comparison(EXACT),
    beside=(
        Setting(**comparison(BACKWARD)),
        Setting(**comparison(SMALL)),
        Setting(
            setting="cost",
            metric="operations of a step's matrix products (a failed count counts as 1e12): exact / forward",
            verdict=rules(1.3, 1.05),
            worst=1e12,
            axes=("steps", "floating-point operations"),
            baseline=Arm(EXACT, ONE),
            method=Arm(FORWARD, ONE),
        ),
        shrinkage(EXACT),
        shrinkage(BACKWARD),
    ),
    minutes=2.5,
    notes="MLP 32-128-128-10 on 1024 noisily labelled examples, 4096 test examples, batches of 64, momentum "
    "0.9, linear decay to zero; exact is double backpropagation; differences with step 0.3, the small one "
    "with 0.01. The arm without penalty tunes its rate among as many values. In a first run rates ended at "
    "0.05, weights at 1, and both were chosen. Diagonal network: w = u^2 - v^2, 20 examples, 50 inputs, "
    "target with three entries of 2, u = v = 0.5 at first, learning rate 0.01, weight 0.05, steps 0.2. "
    "Operations are counted, since times of a small network say little.",
)


def make(arm: str, params: Any, lr: float, weight: float, step: float, momentum: float) -> Any:
    inner = optim.SGD(params, lr=lr, momentum=momentum)
    return optim.GradientRegularization(inner, weight, step, EXACT if arm == NONE else arm.split(",")[0])


def descend(optimizer: Any, arm: str, loss_fn: Callable[[], Tensor]) -> float:
    """One step on the loss; the loss before it."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn()
        if arm != EXACT:
            loss.backward()
        return loss

    return float((optimizer.inner if arm == NONE else optimizer).step(closure).detach())


@cache  # settings share arms
def trained(arm: str, seed: int, lr: float, weight: float) -> tuple[Trial, float]:
    """Test accuracy, and the operations of one step."""
    model = MLP((32, 128, 128, 10), seed=seed)
    optimizer = make(arm, model.parameters(), lr, weight, 0.01 if arm == SMALL else 0.3, 0.9)
    spec = dict(optim.spec(optimizer.inner))
    data = noisy_teacher(samples=1024, test_samples=4096, seed=seed)
    (inputs, targets), test = data.train, data.test
    schedule = LambdaLR(optimizer.inner, optim.linear_decay(STEPS))
    source = torch.Generator().manual_seed(seed)

    def loss_on(chosen: Tensor) -> Tensor:
        return cross_entropy(model(inputs[chosen]), targets[chosen])

    steps, found, operations = [0], [accuracy(model, *test)], 0.0
    for step in range(1, STEPS + 1):
        chosen = torch.randint(len(targets), (64,), generator=source)
        with FlopCounterMode(display=False) if step == 1 else nullcontext() as counter:
            loss = descend(optimizer, arm, partial(loss_on, chosen))
        operations = float(counter.get_total_flops()) if counter else operations
        schedule.step()
        if not math.isfinite(loss):
            return Trial(math.nan, spec, (steps, found)), operations
        if step % 50 == 0:
            steps, found = [*steps, step], [*found, accuracy(model, *test)]
    return Trial(found[-1], spec, (steps, found), {"last loss": loss}), operations


@cache
def diagonal(arm: str, seed: int, lr: float, weight: float) -> Trial:
    """How far u v has shrunk when the loss of a diagonal linear network is 1e-6."""
    inputs = torch.randn(20, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    targets = 2 * inputs[:, :3].sum(1)
    u, v = (torch.nn.Parameter(torch.full((50,), 0.5, dtype=torch.float64)) for _ in range(2))
    optimizer = make(arm, [u, v], lr, weight, 0.2, 0.0)
    steps, shrunk, loss = [0], [0.0], 1.0
    while 1e-6 <= loss < 1e6 and steps[-1] < 20000:
        loss = descend(optimizer, arm, lambda: (inputs @ (u * u - v * v) - targets).square().mean() / 2)
        steps.append(steps[-1] + 1)
        shrunk.append(-float((u * v / 0.25).detach().abs().log().mean()))
    score, spec = shrunk[-1] if loss < 1e-6 else math.nan, dict(optim.spec(optimizer.inner))
    return Trial(score, spec, (steps, shrunk), {"steps": steps[-1]})


def run(setting: str, arm: str, seed: int, lr: float, weight: float) -> Trial:
    if setting.startswith("implicit bias"):
        return diagonal(arm, seed, lr, weight)
    trial, operations = trained(arm, seed, lr, weight)
    if setting == "cost":
        return Trial(operations or math.nan, trial.optimizer, ((1, STEPS), (operations, operations)))
    return trial
