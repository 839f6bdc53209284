"""Schedule refinement (arXiv 2310.07831): is linear decay best, and does a refined schedule beat it?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import isfinite
from typing import NamedTuple

from thalweg import optim
from thalweg.studies._language import CHANCE
from thalweg.studies._with_norms import Trained, digits, logistic_regression, text
from thalweg.studies.study import TUNING_SEED, Arm, Config, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise

FLOORED = "refined, norms raised to 0.3 of the largest"


class Problem(NamedTuple):
    """What the schedules are tried on, and from which effect on a claim counts as seen."""

    measure: str
    steps: int
    rates: tuple[Config, ...]
    norm: str
    worst: float
    axis: str
    cosine: float
    constant: tuple[float, float]
    refined: tuple[float, float]
    floored: bool
    warmup: int = 0


TEXT = Problem(
    measure="validation loss after 200 steps of AdamW, in nats a character (a diverged run, or one above "
    "chance, counts as chance, 4.575)",
    steps=200,
    rates=grid(lr=(1e-3, 2e-3, 4e-3, 8e-3)),
    norm="l1",
    worst=CHANCE,
    axis="validation loss (nats)",
    cosine=0.995,
    constant=(1.02, 1.005),
    refined=(1.01, 1.002),
    floored=False,
)
DIGITS = Problem(
    measure="test loss after 300 steps of SGD with momentum 0.9, in nats (a diverged run, or one above "
    "chance, counts as chance, 2.303)",
    steps=300,
    rates=grid(lr=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    norm="l2",
    worst=2.302585,
    axis="test loss (nats)",
    cosine=0.95,
    constant=(1.1, 1.02),
    refined=(1.05, 1.01),
    floored=True,
)
LOGISTIC = Problem(
    measure="training loss above the least possible after 2000 steps of SGD with batches of 8, in nats (a "
    "diverged run, or one above chance, counts as chance, 0.693)",
    steps=2000,
    rates=grid(lr=(0.05, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 5.0, 12.0, 30.0)),
    norm="l2",
    worst=0.693147,
    axis="excess training loss (nats)",
    cosine=0.9,
    constant=(1.5, 1.1),
    refined=(1.05, 1.01),
    floored=True,
)
WARM = "text after a warm-up of 20 steps"
PROBLEMS = {"text": TEXT, "digits": DIGITS, "logistic regression": LOGISTIC, WARM: TEXT._replace(warmup=20)}


def comparisons(name: str) -> tuple[Setting, Setting, Setting]:
    """Linear decay against cosine and against a constant rate, and the refined schedule against it."""
    one = PROBLEMS[name]

    def setting(suffix: str, low: str, high: str, rules: dict[str, Rule], *others: str) -> Setting:
        return Setting(
            setting=name + suffix,
            metric=f"{one.measure}: {low} / {high}, each at the (peak) learning rate that is best for it",
            verdict={**rules, "not reproduced": otherwise},
            worst=one.worst,
            axes=("steps", one.axis),
            log_y=name != "text",
            baseline=Arm(low, one.rates),
            method=Arm(high, one.rates),
            references=tuple(Arm(other, one.rates) for other in others),
        )

    def graded(bars: tuple[float, float]) -> dict[str, Rule]:
        return {"reproduced": at_least(bars[0]), "direction only": at_least(bars[1])}

    floored = (FLOORED,) if one.floored else ()
    root = ("1/sqrt(t)",) if one.floored else ()
    return (
        setting("", "cosine", "linear decay", {"reproduced": at_least(one.cosine)}, *root),
        setting(", against a constant rate", "constant", "linear decay", graded(one.constant)),
        setting(", refined", "linear decay", "refined", graded(one.refined), *floored),
    )


HEADLINE, *REST = (setting for name in PROBLEMS if name != WARM for setting in comparisons(name))
STUDY = Study(
    paper="schedule-refinement",
    claim="Linear decay to zero ends at least as low as cosine and clearly lower than a constant rate, each "
    "at its own best rate; a schedule refined from the gradient norms of such a run ends lower still.",
    **vars(HEADLINE),
    beside=(*REST, comparisons(WARM)[1]),
    seeds=3,
    minutes=4.5,
    notes="Text: a GPT of two layers and width 64. Digits: MLP 64-64-10, batches of 32. Logistic "
    "regression: 1000 examples of 40 features with scales from 1 to 0.1. Against cosine the bar is that "
    "linear decay is not worse by more than noise: 0.5%, 5% and 10% of the loss. Norms come from the linear "
    "run of the first tuning seed at its best rate, L1 norms for AdamW; the learning rate is tuned again "
    "for the refined one. In a first run without its last setting, no schedule had a warm-up, large rates "
    "failed on text and the small one that was left was best not reduced at all, which the headline does "
    "not show; with a warm-up, as the paper's language models have, that comparison was added under the "
    "same rule. The rates of logistic regression ended at 5 until 1/sqrt(t) chose that; with 12 and 30 for "
    "it came 0.2, 0.5 and 1.2, for all, where the others were best.",
)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    done = trained(setting.split(",")[0], arm, seed, lr)
    return Trial(done.scores[-1], done.spec, (done.steps, done.scores))


@cache  # settings share arms
def trained(name: str, arm: str, seed: int, lr: float) -> Trained:
    train = {"digits": digits, "logistic regression": logistic_regression}.get(name, text)
    return train(schedule(name, arm), seed, lr, PROBLEMS[name].steps)


@cache
def schedule(name: str, arm: str) -> Callable[[int], float]:
    steps, warmup = PROBLEMS[name].steps, PROBLEMS[name].warmup
    if arm.startswith("refined"):
        runs = [trained(name, "linear decay", TUNING_SEED, **one) for one in PROBLEMS[name].rates]
        best = min((one for one in runs if isfinite(one.scores[-1])), key=lambda one: one.scores[-1])
        return optim.refined(best.norms, PROBLEMS[name].norm, floor=0.3 if arm == FLOORED else 0.0)
    return {
        "linear decay": optim.linear_decay(steps, warmup),
        "cosine": optim.cosine(steps, warmup),
        "constant": optim.warmup_stable_decay(steps, warmup, decay=0),
        "1/sqrt(t)": lambda step: (step + 1) ** -0.5,
    }[arm]
