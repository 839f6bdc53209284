"""The annealing law (arXiv 2408.11029): does one run of a small GPT foretell the end of other schedules?"""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from thalweg import optim
from thalweg.studies._language import train
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.tasks import Curve
from thalweg.theory import annealing_areas, annealing_law, cooldown_schedule

STEPS, LONG = 1200, 3000
WARMUP, EVERY = 50, 20
PEAK = 4e-3
DECAYS = (0.9, 0.97, 0.99, 0.997, 0.999)  # those of ``thalweg forecast``, as is the skipped part
BY_FIT = "decay by the fit"
ALLOWED = 1.0  # percent
WORST = 20.0
ONE, EACH = grid(lr=(PEAK,)), grid(lr=(PEAK,), decay=DECAYS)
FIRST, HELD_OUT = "cosine", ("cooldown over a fifth", "linear")
LONGER = "within one percent, longer runs"

STUDY = Study(
    paper="annealing-law",
    claim="Fitted on the validation losses of one run, the law forecasts the loss that other schedules end "
    "with to a fraction of a percent.",
    setting="within one percent",
    metric="error of the forecast final validation loss of a small GPT in percent of the measured one, mean "
    "of two schedules that were not fitted (a failed fit counts as 20): one percent minus the error",
    verdict={"reproduced": at_least(0.0), "direction only": at_least(-1.0), "not reproduced": otherwise},
    effect="baseline - method",
    worst=WORST,
    axes=("steps", "validation loss under a cooldown over a fifth (nats a character)"),
    baseline=Arm("one percent", ONE),
    method=Arm("annealing law", EACH),
    references=(Arm(BY_FIT, ONE),),
    beside=(
        Setting(
            setting="what annealing adds",
            metric="as within one percent: error of a power law in the summed learning rate alone / error of "
            "the annealing law",
            verdict={"reproduced": at_least(2), "direction only": at_least(1.2), "not reproduced": otherwise},
            worst=WORST,
            axes=("steps", "validation loss under a cooldown over a fifth (nats a character)"),
            baseline=Arm("power law", ONE),
            method=Arm("annealing law", EACH),
            references=(Arm("the end of the first run", ONE), Arm("annealing law, two runs", EACH)),
        ),
        Setting(
            setting=LONGER,
            metric="as within one percent, with runs of 3000 steps: one percent minus the error",
            verdict={
                "reproduced": at_least(0.0),
                "direction only": at_least(-1.0),
                "not reproduced": otherwise,
            },
            effect="baseline - method",
            worst=WORST,
            axes=("steps", "validation loss under a cooldown over a fifth (nats a character)"),
            baseline=Arm("one percent", ONE),
            method=Arm("annealing law", EACH),
            references=(Arm(BY_FIT, ONE),),
        ),
    ),
    seeds=3,
    minutes=12,
    notes="GPT of 116 000 parameters on source text, AdamW at 4e-3, warm-up of 50 steps; validation loss "
    "every 20 steps, first tenth not fitted. First run: cosine to 0 over 1200 steps, or 3000. Held out:"
    " constant then linear to 0 over the last fifth; linear to 0. The decay is held fixed, as in the "
    "paper, at that of 0.9, 0.97, 0.99, 0.997 and 0.999 which forecasts best for the two tuning seeds. "
    "Until the longer runs were added it was the one that fits the first run best: that arm is kept, "
    "and is off by 1.7 to 3.2 percent there. Two runs: the linear one is fitted too and only the other "
    "held out. Curves are the forecasts; for one percent what was measured.",
)


def rates(schedule: str, steps: int) -> np.ndarray:
    """Learning rate of every step, with the warm-up."""
    if schedule == "cooldown over a fifth":
        rising = np.minimum(1, np.arange(1, steps + 1) / WARMUP)
        return PEAK * rising * cooldown_schedule(steps, 0.2)
    shape = optim.cosine if schedule == "cosine" else optim.linear_decay
    return PEAK * np.array([shape(steps, WARMUP)(step) for step in range(steps)])


@cache  # all arms judge the same runs
def measured(schedule: str, seed: int, steps: int) -> tuple[Curve, dict[str, Any]]:
    factors = rates(schedule, steps) / PEAK

    def make(model: Any) -> optim.Descent:
        return optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0)

    # The scheduler also asks for the factor behind the last step.
    return train(make, lambda step: float(factors[min(step, steps - 1)]), seed, steps, EVERY)


def losses(schedule: str, seed: int, steps: int) -> np.ndarray:
    return np.array(measured(schedule, seed, steps)[0].test_loss[1:])


def power_law(seed: int, schedule: str, at: np.ndarray) -> np.ndarray:
    """L = floor + scale S1^-exponent, fitted like the law: relative errors, Huber's loss."""
    steps = int(at[-1])
    kept = at > WARMUP + steps // 10
    seen = annealing_areas(rates(FIRST, steps))[0][at - 1][kept]
    observed = losses(FIRST, seed, steps)[kept]

    def value(theta: np.ndarray, area: np.ndarray) -> np.ndarray:
        return theta[0] + theta[1] * area ** -theta[2]

    def off(theta: np.ndarray) -> np.ndarray:
        return np.log(value(theta, seen).clip(min=1e-9)) - np.log(observed)

    starts = ([0.8 * observed.min(), 0.1, exponent] for exponent in (0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5))
    ends = [least_squares(off, one, bounds=(0, np.inf), loss="huber", f_scale=1e-3) for one in starts]
    best = min(ends, key=lambda end: end.cost)
    return value(best.x, annealing_areas(rates(schedule, steps))[0][at - 1])


def forecast(arm: str, seed: int, schedule: str, at: np.ndarray, decay: float) -> np.ndarray:
    steps = int(at[-1])
    if arm == "power law":
        return power_law(seed, schedule, at)
    if arm == "the end of the first run":
        return np.full(len(at), losses(FIRST, seed, steps)[-1])
    if arm == "one percent":
        return losses(schedule, seed, steps)
    fitted = [FIRST, "linear"] if arm.endswith("two runs") else [FIRST]
    law = annealing_law(
        [rates(one, steps) for one in fitted],
        [losses(one, seed, steps) for one in fitted],
        [at for _ in fitted],
        decay=DECAYS if arm == BY_FIT else decay,
        skip=steps // 10,
    )
    return law.predict(rates(schedule, steps), at).loss


def run(setting: str, arm: str, seed: int, lr: float, decay: float = 0.0) -> Trial:
    steps = LONG if setting == LONGER else STEPS
    first, spec = measured(FIRST, seed, steps)
    at = np.array(first.steps[1:])
    held_out = HELD_OUT[:1] if arm.endswith("two runs") else HELD_OUT
    ends = {one: float(losses(one, seed, steps)[-1]) for one in (FIRST, *HELD_OUT)}
    numbers = {f"measured, {one}": end for one, end in ends.items()}
    errors = []
    for schedule in held_out:
        found = float(forecast(arm, seed, schedule, at, decay)[-1])
        numbers[f"forecast, {schedule}"] = found
        errors.append(100 * abs(found / ends[schedule] - 1))
    score = ALLOWED if arm == "one percent" else fmean(errors)
    curve = forecast(arm, seed, HELD_OUT[0], at, decay)
    return Trial(score, spec, (at.tolist(), curve.tolist()), numbers)
