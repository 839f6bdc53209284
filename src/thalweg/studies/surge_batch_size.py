"""The surge law (arXiv 2405.14578): does Adam's best learning rate rise with the batch, peak and fall?"""

from __future__ import annotations

import math
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from thalweg import optim
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.tasks import MLP, Split, noisy_teacher
from thalweg.theory import surge_of_rates

STEPS = 300
SIZES = (2, 4, 8, 16, 32, 64, 128, 256, 512)
RATES = tuple(2 ** (k / 2) * 1e-4 for k in range(17))  # 1e-4 to 2.6e-2
MOST = 3.0  # factors of two
ONE = grid(lr=(0.0,))  # rates are chosen inside a run

STUDY = Study(
    paper="surge-batch-size",
    claim="Adam's best learning rate rises with the batch size, peaks and falls; the law of that shape "
    "follows the best rates more closely than scaling by the square root of the batch size or by the size.",
    setting="left-out batch size",
    metric="factors of two between the best learning rate and the one predicted from those of the other "
    "eight batch sizes, mean of nine (a rule that cannot be fitted, or is off by more, counts as 3): "
    "square root / surge law",
    verdict={"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise},
    worst=MOST,
    axes=("batch size", "predicted best learning rate"),
    log_y=True,
    baseline=Arm("square root", ONE),
    method=Arm("surge law", ONE),
    references=(Arm("linear", ONE), Arm("constant", ONE)),
    beside=(
        Setting(
            setting="the fall",
            metric="best learning rate of the batch size where it is largest over that of batches of 512 (a "
            "rate that is no number counts as 1e-5): peak / largest batch",
            verdict={
                "reproduced": at_least(1.3),
                "direction only": at_least(1.1),
                "not reproduced": otherwise,
            },
            effect="method / baseline",
            worst=1e-5,
            axes=("batch size", "best learning rate"),
            log_y=True,
            baseline=Arm("largest batch", ONE),
            method=Arm("peak", ONE),
        ),
        Setting(
            setting="the rise",
            metric="as the fall: peak / batches of 2",
            verdict={"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise},
            effect="method / baseline",
            worst=1e-5,
            axes=("batch size", "best learning rate"),
            log_y=True,
            baseline=Arm("smallest batch", ONE),
            method=Arm("peak", ONE),
        ),
    ),
    seeds=3,
    minutes=4,
    notes="MLP 32-64-10 on noisily labelled examples, each seen once; 300 steps of Adam (0, 0.95) at a "
    "constant rate whatever the batch size. Best rate: lowest test loss of 17 rates from 1e-4 to 2.6e-2 by "
    "factors of the square root of two, refined by the parabola through the three lowest. Momentum is off, "
    "since it averages over batches.",
)


@cache
def examples(seed: int) -> Split:
    return noisy_teacher(samples=STEPS * SIZES[-1], test_samples=4000, seed=seed)


def trained(size: int, seed: int, lr: float) -> float:
    """Test loss after the steps; infinite for a run that diverged."""
    (inputs, targets), test = examples(seed).train, examples(seed).test
    model = MLP((32, 64, 10), seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=lr, betas=(0.0, 0.95), weight_decay=0.0)
    for step in range(STEPS):
        chosen = slice(step * size, (step + 1) * size)
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[chosen]), targets[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = functional.cross_entropy(model(test[0]), test[1]).item()
    return loss if math.isfinite(loss) else math.inf


@cache  # all arms judge the same rates
def best_rates(seed: int) -> np.ndarray:
    found = []
    for size in SIZES:
        losses = [trained(size, seed, lr) for lr in RATES]
        lowest = min(max(int(np.argmin(losses)), 1), len(RATES) - 2)
        below, here, above = losses[lowest - 1 : lowest + 2]
        bend = below - 2 * here + above
        shift = float(np.clip((below - above) / (2 * bend), -1, 1)) if 0 < bend < math.inf else 0.0
        found.append(RATES[lowest] * 2 ** (shift / 2))
    return np.array(found)


def predicted(arm: str, sizes: np.ndarray, rates: np.ndarray, size: float) -> float:
    """By the rates of the other sizes; NaN where the rule cannot be fitted."""
    if arm == "surge law":
        try:
            return float(surge_of_rates(sizes, rates).predict([size]).rates[0])
        except ValueError:  # they rise, or fall, throughout
            return float("nan")
    power = {"square root": 0.5, "linear": 1.0, "constant": 0.0}[arm]
    return float(np.exp(np.mean(np.log(rates) - power * np.log(sizes))) * size**power)


def left_out(arm: str, seed: int) -> tuple[float, list[float]]:
    sizes, rates = np.array(SIZES, float), best_rates(seed)
    errors, found = [], []
    for i, size in enumerate(sizes):
        others = np.arange(len(sizes)) != i
        found.append(predicted(arm, sizes[others], rates[others], size))
        off = abs(math.log2(found[-1] / rates[i]))
        errors.append(min(off, MOST) if math.isfinite(off) else MOST)
    return fmean(errors), found


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    rates = best_rates(seed)
    spec: dict[str, Any] = dict(
        optim.spec(optim.AdamW(MLP((32, 64, 10), seed=seed).parameters(), lr=1e-3, betas=(0.0, 0.95)))
    )
    numbers = {f"best rate at {size}": float(rate) for size, rate in zip(SIZES, rates, strict=True)}
    if setting == "left-out batch size":
        score, found = left_out(arm, seed)
        return Trial(score, spec, (SIZES, found), numbers)
    score = {"peak": rates.max(), "largest batch": rates[-1], "smallest batch": rates[0]}[arm]
    return Trial(float(score), spec, (SIZES, rates.tolist()), numbers)
