"""Loss curvature (arXiv 2110.04369): does the sharpness times the learning rate say which runs fail?"""

from __future__ import annotations

from statistics import fmean

from thalweg.studies._curvature_runs import RUNGS, TRAINED, at_the_edge, climbed, settled
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, between, otherwise

ONE = grid(lr=(0.0,))  # stands for the whole ladder
PLAIN = Arm("sharp start", ONE)
WARM = Arm("sharp start, warm-up", ONE)
LADDER_AXES = ("learning rate over 2 / sharpness at the start", "training loss (nats)")
LARGEST = (
    "largest learning rate, of 1, 2, 4 ... 1024 times 2 / sharpness at the sharp start, at which the "
    "training loss after 600 steps is below 0.1 nats (a start without any counts as 0.5): "
)


def compared(setting: str, start: str) -> Setting:
    return Setting(
        setting=setting,
        metric=f"{LARGEST}sharp start with warm-up / {start} without",
        verdict={"reproduced": at_least(1), "direction only": at_least(0.5), "not reproduced": otherwise},
        effect="method / baseline",
        worst=0.5,
        axes=LADDER_AXES,
        log_y=True,
        baseline=Arm(start, ONE),
        method=WARM,
    )


def edge(name: str, lr: float) -> Setting:
    return Setting(
        setting=f"edge of stability: {name}",
        metric="largest eigenvalue of the (preconditioned) Hessian over the optimizer's limit, median over "
        "the last 500 of 2000 steps (a diverged run counts as 0): measured / predicted, which is 1",
        verdict={
            "reproduced": between(0.97, 1.03),
            "direction only": between(0.85, 1.15),
            "not reproduced": otherwise,
        },
        effect="method / baseline",
        worst=0.0,
        axes=("steps", "sharpness over its limit"),
        baseline=Arm("predicted", grid(lr=(lr,))),
        method=Arm(name, grid(lr=(lr,))),
    )


STUDY = Study(
    paper="loss-curvature",
    claim="Runs whose sharpness times learning rate exceeds two early on diverge or stall, and warm-up alone "
    "gives as stable a run as special initialisations or normalisation do.",
    setting="a sharp start",
    metric=f"{LARGEST}with warm-up / without",
    verdict={"reproduced": at_least(4), "direction only": at_least(2), "not reproduced": otherwise},
    effect="method / baseline",
    worst=0.5,
    axes=LADDER_AXES,
    log_y=True,
    baseline=PLAIN,
    method=WARM,
    beside=(
        compared("against a good initialisation", "He start"),
        compared("against normalisation", "sharp start, LayerNorm"),
        Setting(
            setting="who fails",
            metric="share of the 11 runs from the sharp start without warm-up for which one of two holds: "
            "sharpness x learning rate, median of steps 20, 30, 40 and 50, is above 2 (a run that diverged "
            "by then counts as above) and the final loss is not below 0.1 nats, or neither: measured / all",
            verdict={
                "reproduced": at_least(0.9),
                "direction only": at_least(0.75),
                "not reproduced": otherwise,
            },
            effect="method / baseline",
            worst=0.0,
            axes=("learning rate over 2 / sharpness at the start", "early sharpness x learning rate / 2"),
            log_y=True,
            baseline=Arm("predicted", ONE),
            method=PLAIN,
        ),
        edge("gradient descent", 0.25),
        edge("Adam", 3e-3),
    ),
    seeds=5,
    minutes=4,
    notes="1000 points of 5 clusters in 20-d, spread 1.5; ReLU MLP 20-64-64-64-64-5, weights He normal times "
    "two (the sharp start), batches of 128, SGD without momentum, 600 steps; warm-up is linear over the "
    "first 200. Nothing is tuned: a trial is a run at each rung. The factor two was chosen on other seeds, "
    "where from plain He weights warm-up gained a factor of two at most. Sharpness is that of all 1000 "
    "points. Edge: the whole batch of 40 points in 5-d, tanh MLP 5-40-40-1, half the mean square error, "
    "float64, at learning rates that reach the edge on other seeds; the limit is 2 / lr for gradient descent "
    "and 38 / lr for Adam, of the preconditioned Hessian. The last rung hangs on rounding: on another "
    "processor warm-up came as far as plain He weights do in three of five seeds, here in none.",
)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if setting.startswith("edge"):
        spec, steps, ratios = at_the_edge("Adam" if "Adam" in setting else "gradient descent", lr, seed)
        if arm == "predicted":
            return Trial(1.0, spec, (steps, [1.0] * len(steps)))
        return Trial(settled(steps, ratios), spec, (steps, ratios))
    spec, losses, excesses = climbed("sharp start" if arm == "predicted" else arm, seed)
    if setting == "who fails":
        if arm == "predicted":
            return Trial(1.0, spec, (RUNGS, [1.0] * len(RUNGS)))
        right = [(q > 1) == (loss >= TRAINED) for q, loss in zip(excesses, losses, strict=True)]
        numbers = {f"early excess at {rung:g}": q for rung, q in zip(RUNGS, excesses, strict=True)}
        return Trial(fmean(right), spec, (RUNGS, excesses), numbers)
    trained = [rung for rung, loss in zip(RUNGS, losses, strict=True) if loss < TRAINED]
    numbers = {f"training loss at {rung:g}": loss for rung, loss in zip(RUNGS, losses, strict=True)}
    return Trial(max(trained, default=0.5), spec, (RUNGS, losses), numbers)
