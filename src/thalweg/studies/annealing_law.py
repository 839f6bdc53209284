"""The annealing law (arXiv 2408.11029): does one run of a small GPT foretell the end of other schedules?"""

from __future__ import annotations

from functools import cache
from statistics import fmean

import numpy as np
from scipy.optimize import least_squares

from thalweg.studies._annealed_runs import PEAK, WARMUP, losses, measured, rates
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.theory import annealing_areas, annealing_law

STEPS, LONG = 1200, 3000
DECAYS = (0.9, 0.97, 0.99, 0.997, 0.999)
BY_FIT = "decay by the fit"
SKIPPED = (0.0, 0.05, 0.1, 0.2, 0.3)  # of a run, tried for the power law
TUNING_SEEDS = (1000, 1001)
ALLOWED = 1.0  # percent
WORST = 20.0
ONE = grid(lr=(PEAK,))
WITHIN = {"reproduced": at_least(0.0), "direction only": at_least(-1.0), "not reproduced": otherwise}
AXES = ("steps", "validation loss under a cooldown over a fifth (nats a character)")
FIRST, HELD_OUT = "cosine", ("cooldown over a fifth", "linear")
LONGER = "within one percent, longer runs"

STUDY = Study(
    paper="annealing-law",
    claim="Fitted on the validation losses of one run, the law forecasts the loss that other schedules end "
    "with to a fraction of a percent.",
    setting="within one percent",
    metric="error of the forecast final validation loss of a small GPT in percent of the measured one, mean "
    "of two schedules that were not fitted (a failed fit counts as 20): one percent minus the error",
    verdict=WITHIN,
    effect="baseline - method",
    worst=WORST,
    axes=AXES,
    baseline=Arm("one percent", ONE),
    method=Arm("annealing law", ONE),
    references=(Arm(BY_FIT, ONE),),
    beside=(
        Setting(
            setting="what annealing adds",
            metric="as within one percent: error of a power law in the summed learning rate alone / error of "
            "the annealing law",
            verdict={"reproduced": at_least(2), "direction only": at_least(1.2), "not reproduced": otherwise},
            worst=WORST,
            axes=AXES,
            baseline=Arm("power law", ONE),
            method=Arm("annealing law", ONE),
            references=(Arm("the end of the first run", ONE), Arm("annealing law, two runs", ONE)),
        ),
        Setting(
            setting=LONGER,
            metric="as within one percent, with runs of 3000 steps: one percent minus the error",
            verdict=WITHIN,
            effect="baseline - method",
            worst=WORST,
            axes=AXES,
            baseline=Arm("one percent", ONE),
            method=Arm("annealing law", ONE),
            references=(Arm(BY_FIT, ONE),),
        ),
    ),
    seeds=3,
    minutes=12,
    notes="GPT of 116 000 parameters on source text, AdamW at 4e-3, warm-up of 50 steps; validation loss "
    "every 20 steps, first tenth not fitted. First run: cosine to 0 over 1200 steps, or 3000. Held out:"
    " constant then linear to 0 over the last fifth; linear to 0. The decay is held fixed, as in the "
    "paper, at that of 0.9, 0.97, 0.99, 0.997 and 0.999 which forecasts best for the two tuning seeds; "
    "so is the power law's skipped part of five. Until the longer runs were added the decay was the one"
    " that fits the first run best: that arm is kept, and is off by 1.7 to 3.2 percent on longer runs. "
    "Two runs: the linear one is fitted too and only the other held out. Curves are the forecasts; for "
    "one percent what was measured.",
)


def power_law(seed: int, schedule: str, at: np.ndarray, skipped: float) -> np.ndarray:
    """L = floor + scale S1^-exponent, fitted like the law: relative errors, Huber's loss."""
    steps = int(at[-1])
    kept = at > WARMUP + skipped * steps
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


def forecast(arm: str, seed: int, schedule: str, at: np.ndarray, chosen: float) -> np.ndarray:
    steps = int(at[-1])
    if arm == "power law":
        return power_law(seed, schedule, at, chosen)
    if arm == "the end of the first run":
        return np.full(len(at), losses(FIRST, seed, steps)[-1])
    if arm == "one percent":
        return losses(schedule, seed, steps)
    fitted = [FIRST, "linear"] if arm.endswith("two runs") else [FIRST]
    law = annealing_law(
        [rates(one, steps) for one in fitted],
        [losses(one, seed, steps) for one in fitted],
        [at for _ in fitted],
        decay=DECAYS if arm == BY_FIT else chosen,
        skip=steps // 10,
    )
    return law.predict(rates(schedule, steps), at).loss


def errors(arm: str, seed: int, steps: int, chosen: float) -> dict[str, float]:
    """Of the loss at the end, in percent, by held-out schedule."""
    at = np.array(measured(FIRST, seed, steps)[0].steps[1:])
    found = {}
    for schedule in HELD_OUT[:1] if arm.endswith("two runs") else HELD_OUT:
        ends = forecast(arm, seed, schedule, at, chosen)[-1], losses(schedule, seed, steps)[-1]
        found[schedule] = 100 * abs(float(ends[0] / ends[1]) - 1)
    return found


@cache
def chosen_for(arm: str, steps: int) -> float:
    """The decay of the annealing law, or the skipped part of the power law, best on the tuning seeds."""
    if arm != "power law" and not arm.startswith("annealing law"):
        return 0.0

    def worth(value: float) -> float:
        return fmean(one for seed in TUNING_SEEDS for one in errors(arm, seed, steps, value).values())

    return min(SKIPPED if arm == "power law" else DECAYS, key=worth)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    steps = LONG if setting == LONGER else STEPS
    first, spec = measured(FIRST, seed, steps)
    at, chosen = np.array(first.steps[1:]), chosen_for(arm, steps)
    off = errors(arm, seed, steps, chosen)
    numbers = {f"measured, {one}": float(losses(one, seed, steps)[-1]) for one in (FIRST, *HELD_OUT)}
    numbers |= {f"forecast, {one}": float(forecast(arm, seed, one, at, chosen)[-1]) for one in off}
    numbers |= {"skipped" if arm == "power law" else "decay": chosen} if chosen or arm == "power law" else {}
    curve = forecast(arm, seed, HELD_OUT[0], at, chosen)
    score = ALLOWED if arm == "one percent" else fmean(off.values())
    return Trial(score, spec, (at.tolist(), curve.tolist()), numbers)
