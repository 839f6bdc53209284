"""Tiny subspace (arXiv 1812.04754): how much of the gradient lies along ten directions, and do they stay?"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from thalweg.studies._top_span import SETTLED, cut, watched
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise


def shares(lr: float) -> dict[str, Any]:
    return {
        "metric": f"share of the gradient's squared length in ten directions, learning rate {lr:g}, mean of "
        "the readings from step 240 to 1200 (a diverged run counts as 0): top Hessian eigenvectors minus "
        "chance",
        "verdict": {
            "reproduced": at_least(0.5),
            "direction only": at_least(0.1),
            "not reproduced": otherwise,
        },
        "effect": "method - baseline",
        "worst": 0.0,
        "axes": ("steps", "share of the gradient's squared length"),
        "baseline": Arm("random directions", grid(lr=(lr,))),
        "method": Arm("top eigenvectors", grid(lr=(lr,))),
        "references": (Arm("top eigenvectors, minibatch gradients", grid(lr=(lr,))),),
    }


STUDY = Study(
    paper="tiny-subspace",
    claim="After a short time most of the gradient lies in the top subspace, and that subspace changes only "
    "slowly for the rest of training.",
    setting="share, learning rate 0.1",
    **shares(0.1),
    beside=(
        Setting(setting="share, learning rate 0.03", **shares(0.03)),
        Setting(setting="share, learning rate 0.3", **shares(0.3)),
        Setting(
            setting="the subspace stays",
            metric="overlap of the span of the ten top eigenvectors after 1200 steps with that after 300, "
            "learning rate 0.1 (a diverged run counts as 0): measured minus chance",
            verdict={
                "reproduced": at_least(0.7),
                "direction only": at_least(0.3),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=0.0,
            axes=("steps", "overlap with the span after 300 steps"),
            baseline=Arm("random directions", grid(lr=(0.1,))),
            method=Arm("top eigenvectors", grid(lr=(0.1,))),
        ),
        Setting(
            setting="what does the learning (arXiv 2405.16002)",
            metric="training loss after 500 steps, in nats, of which the last 400 keep only a part of each "
            "gradient, learning rate 0.1 (a diverged run counts as 10): within the top subspace / outside it",
            verdict={
                "reproduced": at_least(2),
                "direction only": at_least(1.1),
                "not reproduced": otherwise,
            },
            worst=10.0,
            axes=("steps", "training loss (nats)"),
            log_y=True,
            baseline=Arm("within", grid(lr=(0.1,))),
            method=Arm("outside", grid(lr=(0.1,))),
            references=(Arm("whole gradient", grid(lr=(0.1,))),),
        ),
    ),
    seeds=5,
    minutes=2,
    notes="1300 handwritten digits, pixels standardised together, ReLU MLP 64-32-10 (2410 parameters), plain "
    "SGD, batches of 64. Eigenvectors and gradient are those of all 1300 examples; minibatch gradients are "
    "the mean share of 20. Nothing is tuned: the share grows with the learning rate, so it is reported at "
    "three. For the last setting eigenvectors are found anew every 10 steps from step 100 on.",
)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if setting.startswith("what"):
        spec, at, losses = cut(arm, lr, seed)
        return Trial(losses[-1], spec, (at, losses))
    spec, steps, read = watched(lr, seed)
    if setting.endswith("stays"):
        name = "random" if arm.startswith("random") else "overlap"
        return Trial(read[name][-1], spec, (steps, read[name]))
    name = {"random directions": "random", "top eigenvectors": "all"}.get(arm, "minibatch")
    late = [value for step, value in zip(steps, read[name], strict=True) if step >= SETTLED]
    return Trial(fmean(late), spec, (steps, read[name]), {"largest eigenvalue": read["eigenvalue"][-1]})
