"""Early dropout (arXiv 2303.01500): does dropout at the start alone help a small model fit?"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.nn import EarlyDropout, LateDropout
from thalweg.studies.study import Arm, Config, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.tasks import MLP, Curve, handwritten_digits, minibatch

STEPS, BATCH, CUTOFF, NOISE = 800, 64, 0.2, 0.3
PLAIN = grid(lr=(2e-3, 4e-3, 6e-3, 8e-3, 1e-2, 1.2e-2, 1.4e-2, 1.6e-2, 2e-2, 2.4e-2, 3e-2, 4e-2))
DROPPED = grid(lr=(1.2e-2, 1.6e-2, 2.4e-2), rate=(0.02, 0.05, 0.1, 0.3))
WIDE = grid(lr=(2.5e-4, 5e-4, 7e-4, 1e-3, 1.2e-3, 1.4e-3, 1.7e-3, 2e-3, 2.5e-3, 3e-3, 4e-3, 8e-3))
WIDE_DROPPED = grid(lr=(5e-4, 1e-3, 2e-3, 4e-3), rate=(0.1, 0.3, 0.5))
PROBED: tuple[Config, ...] = grid(lr=(3e-3,), rate=(0.1,))
BATCHES = 16
FITTED = (
    "training loss of a model that underfits, with dropout off, in nats (a diverged run, or one above "
    "chance, counts as chance, 2.303)"
)
FIT = {"reproduced": at_least(1.01), "direction only": at_least(1.003), "not reproduced": otherwise}

STUDY = Study(
    paper="early-dropout",
    claim="For a model that underfits, dropout in the first part of training alone ends with a lower "
    "training loss than no dropout at all, whereas constant dropout ends higher.",
    setting="underfitting, early dropout",
    metric=f"{FITTED}: none / early dropout, both tuned over 12 configurations",
    verdict=FIT,
    worst=2.303,
    axes=("steps", "training loss (nats)"),
    baseline=Arm("none", PLAIN),
    method=Arm("early", DROPPED),
    beside=(
        Setting(
            setting="underfitting, constant dropout",
            metric=f"{FITTED}: constant dropout / none, both tuned over 12 configurations",
            verdict=FIT,
            worst=2.303,
            axes=("steps", "training loss (nats)"),
            baseline=Arm("constant", DROPPED),
            method=Arm("none", PLAIN),
        ),
        Setting(
            setting="overfitting, late dropout",
            metric="test accuracy of a model that overfits 300 images (a diverged run counts as chance, "
            "0.1): late dropout minus none, both tuned over 12 configurations",
            verdict={
                "reproduced": at_least(0.005),
                "direction only": at_least(0.001),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=0.1,
            axes=("steps", "test accuracy"),
            baseline=Arm("none, wide", WIDE),
            method=Arm("late, wide", WIDE_DROPPED),
            references=(Arm("constant, wide", WIDE_DROPPED),),
        ),
        Setting(
            setting="direction of gradients",
            metric="mean of (1 - cosine) / 2 over pairs of 16 minibatch gradients of the model that "
            "underfits, mean over steps 20, 40, 60, 80 and 100 of training without dropout (whatever is not "
            "finite counts as 1): without / with dropout of 0.1",
            verdict={
                "reproduced": at_least(1.02),
                "direction only": at_least(1.002),
                "not reproduced": otherwise,
            },
            worst=1.0,
            axes=("steps", "(1 - cosine) / 2 between minibatch gradients"),
            baseline=Arm("none", PROBED),
            method=Arm("dropout 0.1", PROBED),
        ),
    ),
    seeds=15,
    tuning_seeds=2,
    minutes=4,
    notes="Digits, 800 steps in batches of 64, Adam, learning rate falling linearly to zero, dropout after "
    "every hidden layer. Underfitting: MLP 64-24-24-24-10, 30% of the 1300 training labels wrong. "
    "Overfitting: MLP 64-128-128-10, 300 images. Early dropout falls linearly to zero, late dropout begins, "
    "at a fifth of the steps. Learning rates were placed by a pilot on seed 2000; in a first run, "
    "with 9 configurations chosen on one seed, arms with dropout ended at an edge. Seeds were raised from 5 "
    "to 15 when they were seen to differ by more than the effect.",
)


def direction_variance(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """Over the pairs of the batches' gradients, in training mode."""
    rows = []
    for x, y in batches:
        loss = functional.cross_entropy(model(x), y)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]))
    unit = functional.normalize(torch.stack(rows), dim=1)
    cosines = unit @ unit.T
    count = len(rows)
    return float((1 - (cosines.sum() - count) / (count * (count - 1))) / 2)


def setup(wide: bool, seed: int, lr: float) -> tuple[nn.Module, Any, dict[str, Any], Any]:
    torch.manual_seed(seed)  # of the dropout
    sizes = (64, 128, 128, 10) if wide else (64, 24, 24, 24, 10)
    model = MLP(sizes, activation=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(0.0)), seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    data = handwritten_digits(300 if wide else 1300, noisy_labels=0.0 if wide else NOISE, seed=seed)
    return model, optimizer, dict(optim.spec(optimizer)), data


@cache  # settings share runs
def trained(arm: str, seed: int, lr: float, rate: float) -> tuple[dict[str, Any], Curve]:
    name = arm.removesuffix(", wide")
    model, optimizer, spec, data = setup(name != arm, seed, lr)
    cut = round(CUTOFF * STEPS)
    if name != "none":
        begin = cut if name == "late" else 0
        early = name == "early"
        schedule = (EarlyDropout if early else LateDropout)(model, rate, steps=cut if early else begin)
        optimizer.register_step_post_hook(lambda *_: schedule.step())
    decay = LambdaLR(optimizer, optim.linear_decay(STEPS))
    options: Any = {"batch_size": BATCH, "seed": seed, "evaluate_every": 40, "schedule": decay}
    return spec, minibatch(model, data, optimizer, STEPS, **options)


def directions(seed: int, lr: float, rate: float) -> tuple[dict[str, Any], list[int], list[float]]:
    """Along a training without dropout: where, and how far apart gradients with ``rate`` point."""
    model, optimizer, spec, data = setup(False, seed, lr)
    x, y = data.train
    source = torch.Generator().manual_seed(seed)
    at: list[int] = []
    found: list[float] = []

    def measured(step: int, loss: Tensor, batch: Any) -> None:
        if step and step % 20 == 0:
            rows = torch.randperm(len(y), generator=source)[: BATCHES * BATCH].view(BATCHES, BATCH)
            LateDropout(model, rate, steps=0)
            at.append(step)
            found.append(direction_variance(model, [(x[row], y[row]) for row in rows]))
            LateDropout(model, 0.0, steps=0)

    minibatch(model, data, optimizer, 101, batch_size=BATCH, seed=seed, evaluate_every=101, on_step=measured)
    return spec, at, found


def run(setting: str, arm: str, seed: int, lr: float, rate: float = 0.0) -> Trial:
    if setting == "direction of gradients":
        spec, at, found = directions(seed, lr, 0.0 if arm == "none" else rate)
        return Trial(sum(found) / len(found), spec, (at, found))
    spec, curve = trained(arm, seed, lr, rate)
    column = curve.test_accuracy if setting.startswith("overfitting") else curve.train_loss
    numbers = {"training loss": curve.last.train_loss, "test accuracy": curve.last.test_accuracy}
    return Trial(float("nan") if curve.diverged else column[-1], spec, (curve.steps, column), numbers)
