"""Weight Standardization and Batch-Channel Normalization (arXiv 1903.10520): of help at a batch of two?"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from thalweg import optim
from thalweg.nn import BatchChannelNorm, WeightStandardization, convert
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import CNN, Curve, handwritten_digits, minibatch

GROUPS, WIDTH, IMAGES, EPOCHS, LARGE = 4, 16, 600, 3, 60
RATES = grid(lr=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
TUNED = "each at the learning rate that is best for this number (a diverged run counts as chance, 0.1)"
SHOWN: dict[str, Any] = {"effect": "method - baseline", "worst": 0.1, "axes": ("images", "test accuracy")}


def rules(enough: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(enough), "direction only": at_least(some), "not reproduced": otherwise}


STUDY = Study(
    paper="batch-channel-norm",
    claim="At a batch of two, group normalisation with standardised weights is several points better than "
    "without, and as good as batch normalisation at a large batch.",
    setting="standardised weights, groups",
    metric="test accuracy after 1800 images in batches of 2, group normalisation: with standardised weights "
    f"minus without, {TUNED}",
    verdict=rules(0.02, 0.005),
    baseline=Arm("groups", RATES),
    method=Arm("groups, standardised", RATES),
    references=(Arm("batch", RATES),),
    **SHOWN,
    beside=(
        Setting(
            setting="standardised weights, batch and channels",
            metric="the same with batch-channel normalisation on running estimates (a diverged run counts as "
            "chance, 0.1)",
            verdict=rules(0.02, 0.005),
            baseline=Arm("batch and channels", RATES),
            method=Arm("batch and channels, standardised", RATES),
            **SHOWN,
        ),
        Setting(
            setting="against a large batch",
            metric="test accuracy after 1800 images: groups and standardised weights in batches of 2 minus "
            f"batch normalisation in batches of 60, {TUNED}",
            verdict=rules(0.0, -0.01),
            baseline=Arm("batch, batches of 60", RATES),
            method=Arm("groups, standardised", RATES),
            references=(Arm("batch and channels, standardised", RATES),),
            **SHOWN,
        ),
        Setting(
            setting="batch and channels against groups",
            metric="test accuracy after 1800 images in batches of 2, weights standardised: batch-channel "
            f"normalisation minus group normalisation, {TUNED}",
            verdict=rules(0.005, 0.001),
            baseline=Arm("groups, standardised", RATES),
            method=Arm("batch and channels, standardised", RATES),
            **SHOWN,
        ),
    ),
    seeds=5,
    tuning_seeds=2,
    minutes=4.5,
    notes="600 of the 1797 handwritten digits, three epochs; three convolutions of 16, 32 and 32 channels, "
    "4 groups, momentum 0.9, a constant learning rate; the running estimates move at a rate of 0.01. A batch "
    "of 60 makes 30 updates where one of 2 makes 900.",
)


def network(arm: str, seed: int) -> nn.Module:
    model: nn.Module = CNN(width=WIDTH, seed=seed)
    if arm.startswith("groups"):
        model = convert(model, {nn.BatchNorm2d: lambda norm: nn.GroupNorm(GROUPS, norm.num_features)})
    if arm.startswith("batch and channels"):
        model = convert(
            model, {nn.BatchNorm2d: lambda norm: BatchChannelNorm.of(norm, GROUPS, estimated=True, rate=0.01)}
        )
    if arm.endswith("standardised"):
        model = convert(model, {nn.Conv2d: WeightStandardization.of})
    return model


@cache  # settings share arms
def trained(arm: str, seed: int, lr: float) -> tuple[Curve, dict[str, Any]]:
    model = network(arm, seed)
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    spec = dict(optim.spec(optimizer))
    batch = LARGE if arm.endswith("60") else 2
    updates = EPOCHS * IMAGES // batch
    split = handwritten_digits(IMAGES, shape="image", seed=seed)
    curve = minibatch(
        model, split, optimizer, updates, batch_size=batch, seed=seed, evaluate_every=updates // 10
    )
    return curve, spec


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    curve, spec = trained(arm, seed, lr)
    batch = LARGE if arm.endswith("60") else 2
    return Trial(
        score=float("nan") if curve.diverged else curve.last.test_accuracy,
        optimizer=spec,
        curve=([batch * step for step in curve.steps], curve.test_accuracy),
        numbers={"train accuracy": curve.last.train_accuracy},
    )
