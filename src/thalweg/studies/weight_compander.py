"""Weight Compander (arXiv 2306.16993): lighter tails of the weights, fewer at zero, better accuracy?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.nn import WeightCompander, convert
from thalweg.studies.study import Arm, Config, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import MLP, Curve, handwritten_digits, minibatch

IMAGES, BATCH, STEPS = 300, 50, 360
RATES = (0.05, 0.2, 0.8, 1.6)
ONE = grid(lr=(0.2,))
COMPANDED = grid(lr=RATES, decay=(0.0, 5e-3), scale=(0.15, 0.3))


def rules(good: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(good), "direction only": at_least(some), "not reproduced": otherwise}


def weights(
    setting: str, metric: str, axis: str, verdict: dict[str, Rule], configs: tuple[Config, ...]
) -> Any:
    return {
        "setting": setting,
        "metric": f"{metric} after training, mean over the three layers (whatever is not finite, or above "
        "100, counts as 100): plain / companded, both at the same learning rate",
        "verdict": verdict,
        "worst": 100.0,
        "axes": ("steps", axis),
        "baseline": Arm("plain", configs),
        "method": Arm("companded", configs),
        "references": (Arm("companded, learned shape", configs),),
    }


STUDY = Study(
    paper="weight-compander",
    claim="Trained weights have lighter tails and fewer values at zero, with a small gain in accuracy on top "
    "of ordinary regularisation.",
    **weights("tails", "kurtosis of a layer's weights", "kurtosis of the weights", rules(1.3, 1.05), ONE),
    beside=(
        Setting(
            **weights(
                "values at zero",
                "share of a layer's weights within a tenth of their standard deviation of 0",
                "share of the weights",
                rules(1.1, 1.02),
                ONE,
            )
        ),
        Setting(
            **weights(
                "tails under Adam",
                "kurtosis of a layer's weights",
                "kurtosis of the weights",
                rules(1.3, 1.05),
                grid(lr=(1e-3,)),
            )
        ),
        Setting(
            setting="accuracy",
            metric="test accuracy after training on 300 images (a diverged run counts as chance, 0.1): "
            "companded minus plain, both with weight decay and tuned over 16 configurations",
            verdict=rules(0.005, 0.001),
            effect="method - baseline",
            worst=0.1,
            axes=("steps", "test accuracy"),
            baseline=Arm("plain", grid(lr=RATES, decay=(0.0, 1e-3, 5e-3, 2e-2))),
            method=Arm("companded", COMPANDED),
            references=(Arm("companded, learned shape", COMPANDED),),
        ),
    ),
    seeds=6,
    tuning_seeds=1,
    minutes=3,
    notes="Digits, MLP 64-256-256-10, 60 passes over 300 images in batches of 50, SGD without momentum "
    "unless said otherwise, learning rate falling linearly to zero. Scale and width are 0.3 where they are "
    "not tuned; decay is coupled and acts on what is trained, v. The form of the function is from memory. "
    "In a first run the learning rates went from 0.1 to 0.8, and both ends were chosen.",
)


class Trained(NamedTuple):
    """Spec, curve, and the two numbers of the weights at every point of the curve."""

    spec: dict[str, Any]
    curve: Curve
    tails: list[float]
    zeros: list[float]


def kurtosis(w: Tensor) -> float:
    centred = w - w.mean()
    return float(centred.pow(4).mean() / centred.square().mean().square())


def near_zero(w: Tensor) -> float:
    return float((w.abs() < 0.1 * w.std()).double().mean())


@cache  # settings share runs
def trained(adam: bool, arm: str, seed: int, lr: float, decay: float, scale: float) -> Trained:
    torch.manual_seed(seed)
    model: nn.Module = MLP((64, 256, 256, 10), seed=seed)
    if arm != "plain":
        learned = arm.endswith("shape")
        model = convert(model, {nn.Linear: lambda layer: WeightCompander.of(layer, scale, learned=learned)})
    make = optim.AdamW if adam else optim.SGD
    optimizer = make(model.parameters(), lr=lr, weight_decay=decay)
    spec = dict(optim.spec(optimizer))
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    tails: list[float] = []
    zeros: list[float] = []

    def mean(number: Callable[[Tensor], float]) -> float:
        return sum(number(layer.weight.detach()) for layer in layers) / len(layers)

    def measure() -> None:
        tails.append(mean(kurtosis))
        zeros.append(mean(near_zero))

    def before(step: int, loss: Tensor, batch: Any) -> None:
        if step % 36 == 0:
            measure()

    curve = minibatch(
        model,
        handwritten_digits(IMAGES, seed=seed),
        optimizer,
        STEPS,
        batch_size=BATCH,
        seed=seed,
        evaluate_every=36,
        on_step=before,
        schedule=LambdaLR(optimizer, optim.linear_decay(STEPS)),
    )
    measure()
    return Trained(spec, curve, tails, zeros)


def run(setting: str, arm: str, seed: int, lr: float, decay: float = 0.0, scale: float = 0.3) -> Trial:
    done = trained(setting.endswith("Adam"), arm, seed, lr, decay, scale)
    numbers = {"test accuracy": done.curve.last.test_accuracy, "kurtosis": done.tails[-1]}
    column: Any = done.curve.test_accuracy
    if setting != "accuracy":
        column = done.zeros if setting == "values at zero" else done.tails
    score = float("nan") if done.curve.diverged else column[-1]
    return Trial(score, done.spec, (done.curve.steps[: len(column)], column), numbers)
