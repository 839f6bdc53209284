"""TrAct (arXiv 2410.23970): do a first layer's fitted updates train in fewer steps?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn import functional

from thalweg import optim
from thalweg.nn import TrAct, convert
from thalweg.studies.study import Arm, Config, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import CNN, MLP, Row, handwritten_digits, minibatch

STEPS, BATCH = 400, 100
RATES = grid(lr=(0.02, 0.05, 0.1, 0.2, 0.4, 0.8))
ADAM_RATES = grid(lr=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1))
ONE = grid(lr=(0.1,))
FASTER: dict[str, Rule] = {
    "reproduced": at_least(1.25),
    "direction only": at_least(1.05),
    "not reproduced": otherwise,
}


def steps_to(setting: str, what: str, rates: tuple[Config, ...]) -> dict[str, Any]:
    return {
        "setting": setting,
        "metric": f"steps until {what} (a run that never gets there counts as 400): plain / TrAct, each at "
        "the learning rate that is best for this number",
        "verdict": FASTER,
        "worst": float(STEPS),
        "axes": ("steps", "test accuracy"),
        "baseline": Arm("plain", rates),
        "method": Arm("TrAct", rates),
    }


STUDY = Study(
    paper="tract",
    claim="Vision models reach the same accuracy in fewer epochs, and scaling the input by ten shrinks the "
    "first layer's update by about ten rather than enlarging it.",
    **steps_to("MLP, SGD", "the test accuracy of an MLP is 95%", RATES),
    beside=(
        Setting(**steps_to("MLP, Adam", "the test accuracy of an MLP is 95%", ADAM_RATES)),
        Setting(**steps_to("CNN, SGD", "the test accuracy of a CNN is 97%", RATES)),
        Setting(
            setting="ten times brighter",
            metric="norm of the first layer's weight gradient with pixels ten times as large, over that "
            "with the pixels as they are, at the first weights (whatever is above 1e6 counts as 1e6): plain "
            "/ TrAct",
            verdict={
                "reproduced": at_least(50),
                "direction only": at_least(5),
                "not reproduced": otherwise,
            },
            worst=1e6,
            axes=("factor on the pixels", "norm of the gradient / norm at factor 1"),
            log_y=True,
            baseline=Arm("plain", ONE),
            method=Arm("TrAct", ONE),
        ),
    ),
    seeds=5,
    tuning_seeds=2,
    minutes=3,
    notes="Digits, one mean and one standard deviation over all pixels taken off; batches of 100, constant "
    "learning rate, SGD with momentum 0.9, test accuracy every 2 steps. MLP 64-128-128-10, CNN of width 8 "
    "with batch normalisation. Ridge 0.1, the paper's, not tuned. Learning rates were placed by a pilot on "
    "seeds 2000 and 2001.",
)


def make(setting: str, arm: str, seed: int) -> tuple[nn.Module, str]:
    small = setting.startswith("CNN")
    model: nn.Module = CNN(width=8, seed=seed) if small else MLP((64, 128, 128, 10), seed=seed)
    return (convert(model, {"0": TrAct.of}) if arm == "TrAct" else model), "image" if small else "flat"


def brighter(model: Any, seed: int) -> tuple[list[float], list[float]]:
    x, y = (part[:BATCH] for part in handwritten_digits(seed=seed).train)
    factors, norms = [1.0, 3.0, 10.0], []
    for factor in factors:
        model.zero_grad()
        functional.cross_entropy(model(factor * x), y).backward()
        norms.append(float(model[0].weight.grad.norm()))
    return factors, [norm / norms[0] for norm in norms]


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    model, shape = make(setting, arm, seed)
    adam = setting.endswith("Adam")
    optimizer: Any = (
        optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
        if adam
        else optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    )
    spec = dict(optim.spec(optimizer))
    if setting == "ten times brighter":
        factors, norms = brighter(model, seed)
        return Trial(norms[-1], spec, (factors, norms))
    goal = 0.97 if shape == "image" else 0.95
    arrived: Callable[[Row], bool] = lambda row: row.test_accuracy >= goal  # noqa: E731
    data = handwritten_digits(shape=shape, seed=seed)
    curve = minibatch(
        model, data, optimizer, STEPS, batch_size=BATCH, seed=seed, evaluate_every=2, stop=arrived
    )
    step = curve.first_step(arrived)
    return Trial(float("nan") if step is None else float(step), spec, (curve.steps, curve.test_accuracy))
