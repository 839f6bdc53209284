"""Continual backpropagation (arXiv 2306.13812): does renewing useless units keep a network able to learn?"""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch.nn import functional

from thalweg import optim
from thalweg.continual import continual_backprop
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.tasks import MLP, handwritten_digits

TASKS, BATCH, LAST = 200, 32, 20
MATURITY, DECAY = 100, 0.99
RATES = (1e-4, 2e-4, 4e-4, 7e-4, 1e-3, 1.4e-3, 2e-3, 3e-3, 6e-3)
HIGH = grid(lr=(3e-3,), rate=(1e-3,))

STUDY = Study(
    paper="continual-backprop",
    claim="Over a long sequence of tasks plain backpropagation learns each new task worse than the ones "
    "before; renewing a few units of low utility keeps late accuracy at the level of early accuracy.",
    setting="permuted digits",
    metric="online accuracy (on each batch before it is learned), mean of the last 20 of 200 tasks (a "
    "diverged run counts as chance, 0.1): with renewal minus without, each tuned over 9 configurations",
    verdict={"reproduced": at_least(0.03), "direction only": at_least(0.01), "not reproduced": otherwise},
    effect="method - baseline",
    worst=0.1,
    axes=("tasks", "online accuracy, mean of 10 tasks"),
    baseline=Arm("Adam", grid(lr=RATES, rate=(0.0,))),
    method=Arm("Adam + renewal", grid(lr=(1.4e-3, 2.8e-3, 5.6e-3), rate=(3e-4, 1e-3, 3e-3))),
    beside=(
        Setting(
            setting="what 200 tasks leave",
            metric="online accuracy of the last 20 tasks over that of the first 20, at learning rate 3e-3, "
            "rate of renewal 1e-3 (a diverged run counts as 0): with renewal minus without",
            verdict={
                "reproduced": at_least(0.2),
                "direction only": at_least(0.05),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=0.0,
            axes=("tasks", "online accuracy, mean of 10 tasks"),
            baseline=Arm("Adam", grid(lr=(3e-3,), rate=(0.0,))),
            method=Arm("Adam + renewal", HIGH),
            references=(Arm("Adam + renewal of random units", HIGH),),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=5,
    notes="Handwritten digits whose 64 pixels are permuted anew for every task, each seen once (1300 images, "
    "batches of 32); ReLU MLP 64-64-64-10, Adam's state carried on. Utility: contribution, decay 0.99, "
    "maturity 100 steps. The paper's rates, 1e-6 to 1e-4, are for tasks a thousand times longer; sizes, "
    "grids and the rate of 1e-3 come from a pilot on seed 2000, in which 1e-4 lost less than no renewal and "
    "1e-3 lost nothing.",
)


@cache  # settings may judge the same runs
def trained(arm: str, seed: int, lr: float, rate: float) -> tuple[dict[str, Any], list[float], int]:
    """Spec, online accuracy of each task, units renewed; a diverged run ends early."""
    inputs, targets = handwritten_digits(seed=seed).train
    source = torch.Generator().manual_seed(seed)
    model = MLP((64, 64, 64, 10), seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    spec = dict(optim.spec(optimizer))
    renewal = continual_backprop(
        model,
        optimizer,
        rate=0.0 if arm == "Adam" else rate,
        maturity=MATURITY,
        decay=DECAY,
        utility="random" if arm.endswith("random units") else "contribution",
        generator=torch.Generator().manual_seed(seed),
    )
    if arm == "Adam":
        renewal.close()
    accuracies: list[float] = []
    for _ in range(TASKS):
        pixels = torch.randperm(inputs.shape[1], generator=source)
        shown, right = inputs[:, pixels], 0
        for chosen in torch.randperm(len(targets), generator=source).split(BATCH):
            optimizer.zero_grad()
            outputs = model(shown[chosen])
            loss = functional.cross_entropy(outputs, targets[chosen])
            loss.backward()
            right += int((outputs.argmax(1) == targets[chosen]).sum())
            optimizer.step()
            if arm != "Adam":
                renewal.step()
        if not bool(loss.isfinite()):
            break
        accuracies.append(right / len(targets))
    return spec, accuracies, renewal.replaced


def run(setting: str, arm: str, seed: int, lr: float, rate: float) -> Trial:
    spec, accuracies, renewed = trained(arm, seed, lr, rate)
    finished = len(accuracies) == TASKS
    early, late = fmean(accuracies[:LAST] or [0.1]), fmean(accuracies[-LAST:] or [0.1])
    score = (late if setting == "permuted digits" else late / early) if finished else float("nan")
    at = range(10, len(accuracies) + 1, 10)
    shown = [fmean(accuracies[i - 10 : i]) for i in at]
    numbers = {"first 20 tasks": early, "last 20 tasks": late, "units renewed": float(renewed)}
    return Trial(score, spec, (at, shown) if shown else ((1,), (float("nan"),)), numbers)
