"""Adaptive braking (arXiv 2007.01397): does scaling gradients by their angle help when they come late?"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.studies._delayed import QUADRATIC, Late, descend, make
from thalweg.studies._teacher import CHANCE
from thalweg.studies.study import Arm, Config, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, between, otherwise
from thalweg.tasks import MLP, minibatch, noisy_teacher

NETWORK = 600
AXES = ("steps", "log10 of loss / first loss")

# Learning rates, and those of each strength of braking: as many in all as plain momentum has.
PLAIN = tuple(n / 10_000 for n in (5, 10, 15, 20, 25, 28, 30, 31, 32, 33, 34, 35, 36, 38, 40, 60))
BRAKED = {
    0.5: (2e-3, 4e-3, 6e-3, 7e-3),
    2.0: (3e-2, 4e-2, 4.5e-2, 5e-2, 7e-2),
    4.0: (2e-2, 3e-2, 4.5e-2, 7e-2),
    8.0: (1e-2, 2e-2, 4e-2),
}
NETWORK_PLAIN = (1e-3, 2e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3, 9e-3, 1e-2, 1.15e-2, 1.3e-2, 1.6e-2)
NETWORK_BRAKED = {
    0.5: (4e-3, 8e-3),
    1.0: (1.6e-2, 3.2e-2, 6.4e-2),
    2.0: (3.2e-2, 4.5e-2, 6.4e-2, 9e-2),
    4.0: (3.2e-2, 6.4e-2, 1.28e-1),
}


def braked(rates: dict[float, tuple[float, ...]]) -> Arm:
    configs: list[Config] = [{"lr": lr, "strength": one} for one, choices in rates.items() for lr in choices]
    return Arm("braked", tuple(configs))


def rules(good: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(good), "direction only": at_least(some), "not reproduced": otherwise}


def stable(setting: str, verdict: dict[str, Rule]) -> dict[str, Any]:
    return {
        "setting": setting,
        "metric": "largest learning rate at which 1500 steps lower the loss of a quadratic, by bisection to "
        f"5% (none counts as 0.0001), {setting}: braked / plain momentum",
        "verdict": verdict,
        "effect": "method / baseline",
        "worst": 1e-4,
        "axes": AXES,
        "baseline": Arm("momentum", grid(strength=(0.0,))),
        "method": Arm("braked by 2", grid(strength=(2.0,))),
        "references": (Arm("braked by 0.5", grid(strength=(0.5,))),),
    }


STUDY = Study(
    paper="adaptive-braking",
    claim="Under a delay of many steps the range of learning rates that still converge is several times "
    "wider than for plain momentum; without a delay there is no gain.",
    **stable("delay 32", rules(3.0, 1.2)),
    beside=(
        Setting(**stable("delay 8", rules(3.0, 1.2))),
        Setting(**stable("delay 0", {"reproduced": between(0.0, 1.1), "not reproduced": otherwise})),
        Setting(
            setting="loss at delay 32",
            metric="decimal logarithm of the loss of the quadratic after 1500 steps over the first, "
            "gradients 32 steps late, tuned (a run that diverges counts as 0): plain momentum - braked",
            verdict=rules(0.1, 0.02),
            effect="baseline - method",
            worst=0.0,
            axes=AXES,
            baseline=Arm("momentum", grid(lr=PLAIN)),
            method=braked(BRAKED),
        ),
        Setting(
            setting="network at delay 32",
            metric="training loss after 600 steps, in nats, gradients 32 steps late, tuned (a diverged run, "
            "or one above chance, counts as chance, 2.303): plain momentum / braked",
            verdict=rules(1.1, 1.02),
            worst=CHANCE,
            axes=("steps", "training loss (nats)"),
            baseline=Arm("momentum", grid(lr=NETWORK_PLAIN)),
            method=braked(NETWORK_BRAKED),
        ),
    ),
    seeds=3,
    minutes=2.5,
    notes="Momentum 0.9. Quadratic: 20 eigenvalues, log-uniform between 0.001 and 1 (the ends included), "
    "start standard normal, float64; one angle for the whole vector. Network: MLP 32-128-128-10 on 3072 "
    "noisily labelled examples, batches of 64, linear decay to zero, one angle a row. The first gradients "
    "of a delayed run are those of the first weights. The size of the braking coefficient is from memory. "
    "In a first run braking had strengths of 0.5 and 2 and rates to 0.03, and chose the largest of both in "
    "both tuned settings; a pilot on seeds 2000 and 2001 placed the rates of each strength, and both arms "
    "have twice as many, plain momentum around its best.",
)


def run(setting: str, arm: str, seed: int, strength: float = 0.0, lr: float = 0.0) -> Trial:
    if setting == "loss at delay 32":
        spec, steps, logs = descend(seed, lr, strength, 32)
        return Trial(logs[-1] if steps[-1] == QUADRATIC else math.inf, spec, (steps, logs))
    if setting != "network at delay 32":
        delay = int(setting.removeprefix("delay "))
        low, high = 1e-4, 10.0
        while high / low > 1.05:
            middle = math.sqrt(low * high)
            _, steps, logs = descend(seed, middle, strength, delay)
            low, high = (middle, high) if steps[-1] == QUADRATIC and logs[-1] < 0 else (low, middle)
        spec, steps, logs = descend(seed, low, strength, delay)
        return Trial(low, spec, (steps, logs))
    model = MLP((32, 128, 128, 10), seed=seed)
    params: list[Tensor] = list(model.parameters())
    optimizer = make(params, lr, strength)
    spec = dict(optim.spec(optimizer))
    curve = minibatch(
        model,
        noisy_teacher(seed=seed),
        Late(optimizer, params, 32),  # type: ignore[arg-type]
        NETWORK,
        seed=seed,
        evaluate_every=50,
        schedule=LambdaLR(optimizer, optim.linear_decay(NETWORK)),
        closure=True,
    )
    return Trial(
        score=float("nan") if curve.diverged else curve.last.train_loss,
        optimizer=spec,
        curve=(curve.steps, curve.train_loss),
        numbers={"test loss": curve.last.test_loss, "test accuracy": curve.last.test_accuracy},
    )
