"""Softmax collapse (arXiv 2501.04697): does the orthogonal update generalise where AdamW stays at chance?"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from thalweg import optim
from thalweg.probe import softmax_collapse
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.tasks import MLP, full_batch, modular_arithmetic

P, EPOCHS = 113, 200
DECAYS = (
    *grid(lr=(3e-2,), weight_decay=(1.0, 2.0, 3.0, 4.5, 7.0)),
    *grid(lr=(1.5e-2,), weight_decay=(6.0,)),
    *grid(lr=(6e-2,), weight_decay=(2.0, 4.0)),
)
DECAYED = Arm("AdamW, tuned decay", DECAYS)
PLAIN = Arm("AdamW, no decay", grid(lr=(1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 6e-2, 1e-1, 3e-1)))
PERP = Arm("PerpGrad", grid(lr=(3e-3, 6e-3, 8e-3, 1e-2, 1.3e-2, 1.7e-2, 2.2e-2, 3e-2)))

STUDY = Study(
    paper="softmax-collapse",
    claim="Without weight decay a network on modular addition memorises and stays at chance on the test "
    "set; with the gradient's part along the weights removed it generalises almost at once.",
    setting="no weight decay",
    metric="test accuracy after 200 epochs (a diverged run counts as 0): PerpGrad minus AdamW with weight "
    "decay 0, each at the learning rate that is best for this number",
    verdict={"reproduced": at_least(0.9), "direction only": at_least(0.1), "not reproduced": otherwise},
    effect="method - baseline",
    worst=0.0,
    axes=("epochs", "test accuracy"),
    baseline=PLAIN,
    method=PERP,
    references=(DECAYED,),
    beside=(
        Setting(
            setting="against weight decay",
            metric="epochs to 95% test accuracy (a run that diverges or does not arrive by epoch 200 counts "
            "as 200): AdamW with tuned weight decay / PerpGrad, each at what is best for this number",
            verdict={"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise},
            worst=EPOCHS,
            axes=("epochs", "test accuracy"),
            baseline=DECAYED,
            method=PERP,
        ),
        Setting(
            setting="collapsed examples",
            metric="share of training examples whose softmax sum rounds to 1 in float32 after 200 epochs "
            "at the paper's learning rate of 0.01 (a diverged run counts as 1): AdamW with weight "
            "decay 0 minus PerpGrad",
            verdict={
                "reproduced": at_least(0.5),
                "direction only": at_least(0.1),
                "not at this scale": otherwise,
            },
            effect="baseline - method",
            worst=1.0,
            axes=("epochs", "training loss (nats)"),
            log_y=True,
            baseline=Arm("AdamW, no decay", grid(lr=(1e-2,))),
            method=Arm("PerpGrad", grid(lr=(1e-2,))),
        ),
    ),
    minutes=6.5,
    seeds=3,
    tuning_seeds=1,
    notes="Addition mod 113, one-hot pairs, 40% of them trained on, whole batch, ReLU MLP 226-200-200-113 "
    "without biases. Collapse in float32 is expected only after thousands of epochs at a small learning "
    "rate; the share is also measured with the same logits rounded to float16. The comparison with weight "
    "decay was added after a first run, under the rules of the Grokfast study, which has the same metric. "
    "Until then AdamW chose the largest of three rates without decay, where all stay below chance, and the "
    "largest of three decays at one rate; it has more of both, PerpGrad as many around its best rate.",
)


def make(arm: str, lr: float, weight_decay: float) -> Any:
    if arm == "PerpGrad":
        return lambda params: optim.PerpGrad(params, lr=lr)
    # The optimizers differ in nothing but the projection and the decay.
    return lambda params: optim.AdamW(params, lr=lr, betas=(0.9, 0.99), eps=1e-25, weight_decay=weight_decay)


@cache  # the settings judge the same runs
def trained(arm: str, seed: int, lr: float, weight_decay: float) -> Any:
    split = modular_arithmetic(P, "+", 0.4, seed=seed)
    model = MLP((2 * P, 200, 200, P), bias=False, seed=seed)
    optimizer = make(arm, lr, weight_decay)(model.parameters())
    spec = dict(optim.spec(optimizer))
    curve = full_batch(model, split, optimizer, EPOCHS, evaluate_every=10)
    with torch.no_grad():
        logits = model(split.train[0])
    shares = {}
    for name, dtype in (("float32", torch.float32), ("float16", torch.float16)):
        found = None if curve.diverged else softmax_collapse(logits, split.train[1], dtype=dtype)
        shares[f"collapsed share, {name}"] = found.fraction if found else float("nan")
    return curve, spec, shares


def run(setting: str, arm: str, seed: int, lr: float, weight_decay: float = 0.0) -> Trial:
    curve, spec, shares = trained(arm, seed, lr, weight_decay)
    arrived = curve.first_step(lambda row: row.test_accuracy >= 0.95)
    fitted = curve.first_step(lambda row: row.train_accuracy >= 0.99)
    missing = float("nan")
    numbers = {
        "epochs to 99% train accuracy": missing if fitted is None else fitted,
        "epochs to 95% test accuracy": missing if arrived is None else arrived,
        "test accuracy": curve.last.test_accuracy,
        **shares,
    }
    scored = {
        "no weight decay": "test accuracy",
        "against weight decay": "epochs to 95% test accuracy",
        "collapsed examples": "collapsed share, float32",
    }[setting]
    return Trial(
        score=missing if curve.diverged else numbers[scored],
        optimizer=spec,
        curve=(curve.steps, curve.train_loss if setting == "collapsed examples" else curve.test_accuracy),
        numbers=numbers,
    )
