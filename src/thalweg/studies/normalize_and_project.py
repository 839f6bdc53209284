"""Normalize-and-project (arXiv 2407.01800): does a network whose weights cannot grow go on learning?"""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.nn import normalize_and_project, project_after_step
from thalweg.probe import weight_growth
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import MLP, Curve, handwritten_digits, minibatch, random_label_stream

TASKS, STEPS, LAST, DIGITS = 50, 150, 10, 400
RATES = grid(lr=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
LARGE = grid(lr=(3e-3,))
LATE = "training accuracy at the end of a task, mean of the last 10 of 50 tasks"
TUNED = "each at the learning rate that is best for this number (a diverged run counts as chance, 0.1)"


def rules(enough: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(enough), "direction only": at_least(some), "not reproduced": otherwise}


def shown(x: str, y: str) -> dict[str, Any]:
    return {"effect": "method - baseline", "worst": 0.1, "axes": (x, y)}


STUDY = Study(
    paper="normalize-and-project",
    claim="Over a long stream of new targets the projected network fits the last ones as well as the first, "
    "where plain and layer-normalised networks slow down; on data that stay the same it loses nothing.",
    setting="against a plain network",
    metric=f"{LATE}: normalised and projected minus plain, {TUNED}",
    verdict=rules(0.15, 0.03),
    baseline=Arm("plain", RATES),
    method=Arm("projected", RATES),
    references=(Arm("normalised", RATES),),
    **shown("tasks", "accuracy at the end of the task"),
    beside=(
        Setting(
            setting="against normalisation alone",
            metric=f"{LATE}: normalised and projected minus normalised, {TUNED}",
            verdict=rules(0.03, 0.01),
            baseline=Arm("normalised", RATES),
            method=Arm("projected", RATES),
            **shown("tasks", "accuracy at the end of the task"),
        ),
        Setting(
            setting="at a large learning rate",
            metric=f"{LATE}, learning rate 0.003: normalised and projected minus normalised (a diverged run "
            "counts as chance, 0.1)",
            verdict=rules(0.03, 0.01),
            baseline=Arm("normalised", LARGE),
            method=Arm("projected", LARGE),
            **shown("tasks", "accuracy at the end of the task"),
        ),
        Setting(
            setting="data that stay the same",
            metric=f"test accuracy on digits after 400 steps: normalised and projected minus plain, {TUNED}",
            verdict=rules(-0.003, -0.01),
            baseline=Arm("plain", RATES),
            method=Arm("projected", RATES),
            references=(Arm("normalised", RATES),),
            **shown("steps", "test accuracy"),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=4,
    notes="512 fixed inputs in 32-d whose 10 labels are redrawn every 150 steps; ReLU MLP 32-64-64-10, "
    "batches of 64, AdamW without decay, its state carried on; gains and offsets free, the readout neither "
    "normalised nor projected. Digits: MLP 64-128-128-10, batches of 64, cosine decay.",
)


def prepared(arm: str, model: nn.Module, lr: float) -> tuple[nn.Module, Any]:
    if arm != "plain":
        model = normalize_and_project(model)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    if arm == "projected":
        project_after_step(model, optimizer)
    return model, optimizer


@cache  # settings share arms
def on_stream(arm: str, seed: int, lr: float) -> tuple[dict[str, Any], list[float], float]:
    model, optimizer = prepared(arm, MLP((32, 64, 64, 10), seed=seed), lr)
    spec = dict(optim.spec(optimizer))
    first = {name: value.clone() for name, value in model.state_dict().items()}
    fitted: list[float] = []
    for number, task in enumerate(random_label_stream(TASKS, seed=seed)):
        curve = minibatch(model, task, optimizer, STEPS, seed=seed + number, evaluate_every=STEPS)
        if curve.diverged:
            break
        fitted.append(curve.last.train_accuracy)
    return spec, fitted, weight_growth(model, first).total_growth


@cache
def on_digits(arm: str, seed: int, lr: float) -> tuple[Curve, dict[str, Any]]:
    model, optimizer = prepared(arm, MLP((64, 128, 128, 10), seed=seed), lr)
    spec = dict(optim.spec(optimizer))
    schedule = LambdaLR(optimizer, optim.cosine(DIGITS))
    split = handwritten_digits(seed=seed)
    return minibatch(model, split, optimizer, DIGITS, seed=seed, evaluate_every=20, schedule=schedule), spec


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if setting.startswith("data"):
        curve, spec = on_digits(arm, seed, lr)
        score = float("nan") if curve.diverged else curve.last.test_accuracy
        return Trial(score, spec, (curve.steps, curve.test_accuracy))
    spec, fitted, growth = on_stream(arm, seed, lr)
    finished = len(fitted) == TASKS
    late = fmean(fitted[-LAST:]) if finished else float("nan")
    early = fmean(fitted[:LAST]) if finished else float("nan")
    numbers = {
        "accuracy on the first 10 tasks": early,
        "accuracy on the last 10 tasks": late,
        "growth of the weights": growth,
    }
    seen = fitted or [float("nan")]
    return Trial(late, spec, (range(1, len(seen) + 1), seen), numbers)
