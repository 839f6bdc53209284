"""Spectral regularization (arXiv 2406.06811): do bounded singular values keep a network able to learn?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thalweg import optim
from thalweg.nn import spectral_regularization, wasserstein_regularization
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import MLP, minibatch, random_label_stream

TASKS, STEPS, LAST = 25, 150, 5
STRENGTHS = (1e-4, 1e-3, 1e-2)
ALONE = grid(lr=(3e-5, 1e-4, 3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 1e-2))
BOTH = grid(lr=(1e-2, 3e-2), strength=(*STRENGTHS, 1e-1))
ONE_RATE = grid(lr=(3e-3,))
LATE = "training accuracy at the end of a task, mean of the last 5 of 25 tasks"
TUNED = "each at what is best for this number (a diverged run counts as chance, 0.1)"


def rules(enough: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(enough), "direction only": at_least(some), "not reproduced": otherwise}


SHOWN: dict[str, Any] = {
    "effect": "method - baseline",
    "worst": 0.1,
    "axes": ("tasks", "accuracy at the end of the task"),
}

STUDY = Study(
    paper="spectral-regularization",
    claim="Over a stream of new targets a penalty on the largest singular values keeps the accuracy on new "
    "tasks high, and does so over a wider range of strengths than decay towards zero.",
    setting="against no penalty",
    metric=f"{LATE}: with the spectral penalty (two learning rates, four strengths) minus without (eight "
    f"learning rates), {TUNED}",
    verdict=rules(0.15, 0.03),
    baseline=Arm("plain", ALONE),
    method=Arm("spectral", BOTH),
    **SHOWN,
    beside=(
        Setting(
            setting="against decay towards zero",
            metric=f"{LATE}: with the spectral penalty minus with a squared norm (two learning rates and "
            f"four strengths for both), {TUNED}",
            verdict=rules(0.03, 0.01),
            baseline=Arm("squared norm", BOTH),
            method=Arm("spectral", BOTH),
            **SHOWN,
        ),
        Setting(
            setting="over strengths",
            metric=f"{LATE} and of strengths 1e-4, 1e-3 and 1e-2 at learning rate 3e-3: with the spectral "
            "penalty minus with a squared norm (a diverged run counts as chance, 0.1)",
            verdict=rules(0.05, 0.01),
            baseline=Arm("squared norm", ONE_RATE),
            method=Arm("spectral", ONE_RATE),
            references=(Arm("Wasserstein", ONE_RATE),),
            **SHOWN,
        ),
        Setting(
            setting="largest singular value",
            metric="largest singular value of all layers after 25 tasks at learning rate 3e-3 (a diverged "
            "run counts as 100): without a penalty / with the spectral penalty of strength 1e-3",
            verdict=rules(2, 1.2),
            effect="baseline / method",
            worst=100.0,
            axes=("tasks", "largest singular value"),
            baseline=Arm("plain", ONE_RATE),
            method=Arm("spectral", ONE_RATE),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=5,
    notes="512 fixed inputs in 32-d whose 10 labels are redrawn every 150 steps; ReLU MLP 32-64-64-10 "
    "without normalisation, batches of 64, AdamW without its own decay, its state carried on. The squared "
    "norm of all parameters is added to the loss, times the strength. In a first run the penalties' learning "
    "rates were 3e-3 and 1e-2 and their strengths ended at 1e-2; the squared norm chose 1e-2 twice, so both "
    "ranges were moved up.",
)


def penalised(arm: str, model: nn.Module, strength: float) -> Callable[[], Tensor] | None:
    if arm == "spectral":
        return spectral_regularization(model, strength)
    if arm == "Wasserstein":
        return wasserstein_regularization(model, strength)
    if arm == "squared norm":
        params = list(model.parameters())
        return lambda: strength * torch.stack([p.square().sum() for p in params]).sum()
    return None


@cache  # settings share arms
def trained(arm: str, seed: int, lr: float, strength: float) -> tuple[Any, list[float], list[float]]:
    """Spec, accuracy and largest singular value at the end of each task; a diverged run ends early."""
    model = MLP((32, 64, 64, 10), seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    spec = dict(optim.spec(optimizer))
    penalty = penalised(arm, model, strength)

    def loss_fn(logits: Tensor, targets: Tensor) -> Tensor:
        loss = cross_entropy(logits, targets)
        return loss if penalty is None or not model.training else loss + penalty()

    fitted, largest = [], []
    for number, task in enumerate(random_label_stream(TASKS, seed=seed)):
        curve = minibatch(
            model, task, optimizer, STEPS, seed=seed + number, loss_fn=loss_fn, evaluate_every=STEPS
        )
        if curve.diverged:
            break
        fitted.append(curve.last.train_accuracy)
        weights = [p.detach() for p in model.parameters() if p.dim() == 2]
        largest.append(max(torch.linalg.matrix_norm(w, 2).item() for w in weights))
    return spec, fitted, largest


def run(setting: str, arm: str, seed: int, lr: float, strength: float = 1e-3) -> Trial:
    chosen = STRENGTHS if setting == "over strengths" else (strength,)
    runs = [trained(arm, seed, lr, 0.0 if arm == "plain" else one) for one in chosen]
    missing = float("nan")
    spec, fitted, largest = runs[chosen.index(strength)]
    late = [fmean(run[1][-LAST:]) if len(run[1]) == TASKS else missing for run in runs]
    # One that diverges counts as chance among the strengths, not for all of them.
    score = fmean(max(0.1, one) if one == one else 0.1 for one in late)
    if len(runs) == 1:
        score = late[0]
    sigma = largest[-1] if len(largest) == TASKS else missing
    shown = largest if setting == "largest singular value" else fitted
    return Trial(
        score=sigma if setting == "largest singular value" else score,
        optimizer=spec,
        curve=(range(1, len(shown) + 1), shown) if shown else ((1,), (missing,)),
        numbers={
            "accuracy on the first 5 tasks": fmean(fitted[:LAST]) if fitted else missing,
            "largest singular value": sigma,
        },
    )
