"""Plasticity (arXiv 2303.01486): what new targets, one after another, do to the ability to fit the next."""

from __future__ import annotations

from statistics import fmean

from thalweg.studies._label_stream import PROBED, TASKS, trained
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise

LAST = 5
RATES = grid(lr=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
ONE_RATE = grid(lr=(PROBED,))
UNUSED = 0.01  # share of saturated units up to which they explain nothing

STUDY = Study(
    paper="plasticity",
    claim="Over a stream of tasks with random labels a plain network loses the ability to fit the next, "
    "without saturated units if need be; with layer normalisation it keeps several times as much of it.",
    setting="fitting new labels",
    metric="training accuracy at the end of a task, mean of the last 5 of 25 tasks (a diverged run counts as "
    "chance, 0.1): with layer normalisation / without, each at the learning rate that is best for this "
    "number",
    verdict={"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise},
    effect="method / baseline",
    worst=0.1,
    axes=("tasks", "accuracy at the end of the task"),
    baseline=Arm("plain", RATES),
    method=Arm("layer normalisation", RATES),
    beside=(
        Setting(
            setting="plasticity left",
            metric="plasticity after 25 tasks at learning rate 1e-3 over that of the first weights, by the "
            "probe (fresh labels, 100 steps, fresh Adam state, the best of three learning rates; a diverged "
            "run counts as 0): with layer normalisation minus without",
            verdict={
                "reproduced": at_least(0.3),
                "direction only": at_least(0.05),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=0.0,
            axes=("tasks", "plasticity / plasticity of the first weights"),
            baseline=Arm("plain", ONE_RATE),
            method=Arm("layer normalisation", ONE_RATE),
        ),
        Setting(
            setting="without saturated units",
            metric="plasticity of a leaky ReLU network over that of its first weights, as above (a diverged "
            "run, or one in which more than 1% of the units are saturated in the end, counts as 1): before "
            "the first task minus after 25 tasks at learning rate 1e-3",
            verdict={
                "reproduced": at_least(0.2),
                "direction only": at_least(0.05),
                "not reproduced": otherwise,
            },
            effect="baseline - method",
            worst=1.0,
            axes=("tasks", "plasticity / plasticity of the first weights"),
            baseline=Arm("first weights", ONE_RATE),
            method=Arm("leaky ReLU", ONE_RATE),
        ),
        Setting(
            setting="stale optimizer state",
            metric="training accuracy at the end of a task, mean of the last 5 of 25 tasks at learning rate "
            "1e-3 (a diverged run counts as chance, 0.1): Adam's state emptied when the task changes minus "
            "carried on",
            verdict={
                "reproduced": at_least(0.1),
                "direction only": at_least(0.03),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=0.1,
            axes=("tasks", "accuracy at the end of the task"),
            baseline=Arm("plain", ONE_RATE),
            method=Arm("state emptied", ONE_RATE),
        ),
    ),
    seeds=3,
    tuning_seeds=1,
    minutes=3.5,
    notes="512 fixed inputs in 32-d whose 10 labels are redrawn every 300 steps; ReLU MLP 32-64-64-10, "
    "batches of 64, AdamW without decay, its state carried on unless said otherwise. Saturated: a slope of "
    "at most 0.005 on 99% of the inputs. The learning rates were chosen on other seeds so that both arms "
    "have their best one inside; there, at 1e-3, plasticity left was 0.3 to 0.5 without and 0.9 to 1 with "
    "layer normalisation.",
)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if arm == "first weights":
        return Trial(1.0, trained("leaky ReLU", seed, lr).spec, ((0, TASKS), (1.0, 1.0)))
    done = trained(arm, seed, lr)
    finished = len(done.fitted) == TASKS
    missing = float("nan")
    accuracy = fmean(done.fitted[-LAST:]) if finished else missing
    if setting in ("plasticity left", "without saturated units"):
        score = done.left[-1] if finished else missing
        if arm == "leaky ReLU" and done.numbers.get("saturated share", 1.0) > UNUSED:
            score = missing
        return Trial(score, done.spec, (done.at, done.left), {"accuracy": accuracy, **done.numbers})
    numbers = {
        "accuracy on the first 5 tasks": fmean(done.fitted[:LAST]) if finished else missing,
        "accuracy on the last 5 tasks": accuracy,
    }
    shown = done.fitted or [missing]
    return Trial(accuracy, done.spec, (range(1, len(shown) + 1), shown), numbers)
