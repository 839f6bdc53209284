"""Latent states of training (arXiv 2308.09543): do the phases of seeds tell how long each takes?"""

from __future__ import annotations

from statistics import median

from thalweg.probe import detours, fit_phases
from thalweg.studies._phases_of_seeds import RUNS, STATES, STEPS, group, phased, single_statistic
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise

SHARE = (
    "share of the variance of the step of 95% test accuracy over 16 runs that is explained, each run "
    "predicted from the others (below 0 counts as 0): by the time spent in each phase minus by the mean over "
    "the run of the one weight statistic that does best"
)
SHARE_RULES = {"reproduced": at_least(0.1), "direction only": at_least(0.0), "not reproduced": otherwise}
PATHS = (
    "share of 16 runs whose order of phases is not the commonest (a diverged group counts as 1): without "
    "layer normalisation minus with"
)
PATH_RULES = {"reproduced": at_least(0.2), "direction only": at_least(0.05), "not reproduced": otherwise}
BY_STATES = ("number of phases", "share of variance explained, runs left out")
BY_STEP = ("steps", "median test accuracy of the runs")
ADDITION, PARITY = grid(lr=(0.01,)), grid(lr=(0.03,))

STUDY = Study(
    paper="latent-training-states",
    claim="Phases found in the weight statistics of many seeds explain how long each seed takes; without "
    "normalisation some seeds pass through slow extra phases, with it all follow one path and arrive sooner.",
    setting="time explained",
    metric=f"modular addition without normalisation: {SHARE}",
    verdict=SHARE_RULES,
    effect="method - baseline",
    worst=0.0,
    axes=BY_STATES,
    baseline=Arm("best single statistic", ADDITION),
    method=Arm("phases", ADDITION),
    beside=(
        Setting(
            setting="time explained, sparse parity",
            metric=f"sparse parity without normalisation: {SHARE}",
            verdict=SHARE_RULES,
            effect="method - baseline",
            worst=0.0,
            axes=BY_STATES,
            baseline=Arm("best single statistic", PARITY),
            method=Arm("phases", PARITY),
        ),
        Setting(
            setting="paths",
            metric=f"modular addition: {PATHS}",
            verdict=PATH_RULES,
            effect="baseline - method",
            worst=1.0,
            axes=BY_STEP,
            baseline=Arm("no normalisation", ADDITION),
            method=Arm("layer normalisation", ADDITION),
        ),
        Setting(
            setting="paths, sparse parity",
            metric=f"sparse parity: {PATHS}",
            verdict=PATH_RULES,
            effect="baseline - method",
            worst=1.0,
            axes=BY_STEP,
            baseline=Arm("no normalisation", PARITY),
            method=Arm("layer normalisation", PARITY),
        ),
        Setting(
            setting="arrival",
            metric="modular addition: median over 16 runs of the steps to 95% test accuracy (a run that does "
            "not arrive by step 650 counts as 650): without layer normalisation / with",
            verdict={
                "reproduced": at_least(1.5),
                "direction only": at_least(1.1),
                "not reproduced": otherwise,
            },
            worst=float(STEPS),
            axes=BY_STEP,
            baseline=Arm("no normalisation", ADDITION),
            method=Arm("layer normalisation", ADDITION),
        ),
    ),
    seeds=3,
    minutes=4.5,
    notes="A seed is a group of 16 runs that differ in initialisation and in the training part of the data. "
    "Addition mod 31, one-hot pairs, 65% of them trained on, whole batch, ReLU MLP 62-96-96-31, AdamW with "
    "learning rate 0.01 and decay 2, 650 steps. Parity of 3 among 20 bits, 1000 examples, MLP 20-100-2, SGD "
    "with momentum 0.9, learning rate 0.03, decay 0.01, batches of 32, 600 steps. The fourteen weight "
    "statistics of the paper every 10 steps, standardised over each run; diagonal Gaussian hidden Markov "
    "model, 1 to 6 states by BIC, 3 starts. A detour is a phase of some runs only with more steps the longer "
    "it lasts (p at most 0.001). Nothing is tuned. Sizes were set on pilots with seeds from 5000 on, in "
    "which BIC took the most states it was offered, parity was explained, addition was not, and no path was "
    "clearly rarer with normalisation. The paper's runs (a transformer, mod 113, 10 000 epochs) are out of "
    "reach here. What a diverged group counts as was added to the wording of the metrics of paths after the "
    "run, in which none diverged.",
)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    parity = setting.endswith("parity")
    norm = "layer" if arm == "layer normalisation" else None
    made = group(parity, norm, seed, lr)
    phases, parted = phased(parity, norm, seed, lr)
    numbers = {
        "phases": phases.count,
        "phases of some runs only": len(parted.optional),
        "detours": len(parted.slow),
        "orders of phases": len(parted.courses),
        "share explained, same runs": parted.explained,
        "share explained, runs left out": parted.predicted,
        "least steps to 95%": min(made.arrivals.values()),
        "median steps to 95%": median(made.arrivals.values()),
        "most steps to 95%": max(made.arrivals.values()),
    }
    by_step = (made.steps, made.accuracy)
    if setting == "arrival":
        return Trial(median(made.arrivals.values()), made.spec, by_step, numbers)
    if setting.startswith("paths"):
        commonest = len(next(iter(parted.courses.values())))
        return Trial(1 - commonest / RUNS, made.spec, by_step, numbers)
    counts = range(2, STATES + 1)
    if arm == "best single statistic":
        share = single_statistic(made)
        return Trial(share, made.spec, (counts, [share] * len(counts)), numbers)
    shares = [
        detours(fit_phases(made.readings, states=count, restarts=3), made.arrivals).predicted
        for count in counts
    ]
    return Trial(parted.predicted, made.spec, (counts, shares), numbers)
