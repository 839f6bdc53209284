"""Dynamical stability (arXiv 2305.17490): does the learning rate bound the trace where SGD ends?"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from thalweg import optim
from thalweg.probe import SgdStability, curvature_gram, sgd_stability
from thalweg.studies._interpolating import POINTS, Regression, half_square
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise

STEPS, EVERY = 6000, 500
FITTED = 0.01  # of the loss at the start
RATES = (0.01, 0.02, 0.025, 0.03)  # at batch size one
FOUR = (0.03, 0.1)
ALL = grid(lr=(0.0,))  # stands for every learning rate
BOUND = {"reproduced": at_least(1), "direction only": at_least(0.8), "not reproduced": otherwise}
ENDED = (
    "after 6000 steps, of the learning rates at which the loss ends below 1% of its first (none counts as 10)"
)


def bounded(setting: str, batch: str, what: str, rates: tuple[float, ...], axis: str) -> Setting:
    return Setting(
        setting=setting,
        metric=f"{what} {ENDED}, the largest of {', '.join(map(str, rates))}: 1 / measured",
        verdict=BOUND,
        worst=10.0,
        axes=("steps", axis),
        log_y=True,
        baseline=Arm("bound", ALL),
        method=Arm(f"SGD, {batch}", ALL),
    )


STUDY = Study(
    paper="sgd-dynamical-stability",
    claim="At batch size one and squared loss, any stable minimum has a Hessian trace of at most two over "
    "the learning rate; larger rates therefore end at smaller traces.",
    setting="trace",
    metric=f"trace of the Hessian x learning rate / 2 {ENDED}, the largest of "
    f"{', '.join(map(str, RATES))}: bound, which is 1, / measured",
    verdict=BOUND,
    worst=10.0,
    axes=("steps", "trace x learning rate / 2"),
    log_y=True,
    baseline=Arm("bound", ALL),
    method=Arm("SGD, batch of one", ALL),
    beside=(
        Setting(
            setting="larger rate, smaller trace",
            metric="trace of the Hessian after 6000 steps at batch size one (a run that does not end below "
            "1% of its first loss counts as 1000): learning rate 0.01 / 0.03",
            verdict={
                "reproduced": at_least(2),
                "direction only": at_least(1.1),
                "not reproduced": otherwise,
            },
            worst=1000.0,
            axes=("steps", "trace"),
            baseline=Arm("learning rate 0.01", grid(lr=(RATES[0],))),
            method=Arm("learning rate 0.03", grid(lr=(RATES[-1],))),
        ),
        bounded(
            "exact limit",
            "batch of one",
            "learning rate over the exact mean-square limit of its linearised steps",
            RATES,
            "learning rate over exact limit",
        ),
        bounded(
            "exact limit, batch of four",
            "batch of four",
            "learning rate over the exact mean-square limit of its linearised steps",
            FOUR,
            "learning rate over exact limit",
        ),
        bounded(
            "trace, batch of four",
            "batch of four",
            "trace of the Hessian x learning rate / 8",
            FOUR,
            "trace x learning rate / 8",
        ),
    ),
    seeds=5,
    minutes=2,
    notes="20 points, standard normal inputs in 5-d and targets; ReLU network 5-100-1 with torch's weights "
    "times two, half the mean square error, float64, plain SGD whose batches are drawn anew each step "
    "without repeats. Nothing is tuned; the rates were chosen on other seeds: at the least the start is "
    "within the bound, and above the largest (0.03, and 0.1 for four) the network mostly ends unfitted. The "
    "Hessian is the Gauss-Newton matrix, which it equals where every point is fitted. At batch size B the "
    "bound is 2 B / trace. The exact limit is about the mean square, which rare draws decide: a single run "
    "may stay a little above it.",
)


@cache  # settings share runs
def trained(batch: int, lr: float, seed: int) -> tuple[dict[str, Any], list[int], list[SgdStability], bool]:
    """Spec, stability at some steps, and whether it fitted the points; a diverged run ends early."""
    task = Regression(seed)
    optimizer = optim.SGD(task.params, lr=lr)
    spec = dict(optim.spec(optimizer))
    steps: list[int] = []
    found: list[SgdStability] = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            if not math.isfinite(task.loss().item()):
                break
            gram = curvature_gram(task.model, half_square, task.inputs, task.targets)
            steps.append(step)
            found.append(sgd_stability(gram, lr, batch))
        rows = torch.randperm(POINTS, generator=task.source)[:batch]
        optimizer.zero_grad()
        task.loss(rows).backward()
        optimizer.step()
    return spec, steps, found, steps[-1] == STEPS and found[-1].loss < FITTED * found[0].loss


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    batch = 4 if setting.endswith("four") else 1

    def reading(one: SgdStability) -> float:
        if setting.startswith("larger"):
            return one.trace
        return one.ratio if setting.startswith("exact") else one.trace * one.lr / (2 * batch)

    rates = (lr,) if lr else RATES if batch == 1 else FOUR
    runs = [trained(batch, rate, seed) for rate in rates]
    scores = [reading(found[-1]) if fitted else math.nan for _, _, found, fitted in runs]
    largest = max((score for score in scores if math.isfinite(score)), default=math.nan)
    spec, steps, found, _ = runs[scores.index(largest) if math.isfinite(largest) else 0]
    if arm == "bound":
        return Trial(1.0, spec, (steps, [1.0] * len(steps)))
    numbers = {f"at learning rate {rate:g}": score for rate, score in zip(rates, scores, strict=True)}
    numbers |= {f"loss at {rate:g}": one[2][-1].loss for rate, one in zip(rates, runs, strict=True)}
    numbers |= {f"at the start, {rate:g}": reading(one[2][0]) for rate, one in zip(rates, runs, strict=True)}
    return Trial(largest, spec, (steps, [reading(one) for one in found]), numbers)
