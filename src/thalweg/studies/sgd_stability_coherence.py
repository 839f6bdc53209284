"""SGD stability and coherence (arXiv 2401.12332): must SGD leave a minimum above the coherence bound?"""

from __future__ import annotations

from thalweg.studies._leaving import EVERY, judged, linearised, minimum, pushed, random_curvatures
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise

BATCHES = (1, 2, 4)
ABOVE = 1.02  # learning rate over the coherence bound
ONE = grid(above=(ABOVE,))

STUDY = Study(
    paper="sgd-stability-coherence",
    claim="Where the top eigenvalue exceeds the coherence bound for the given batch size and learning rate, "
    "linearised SGD diverges in mean square.",
    setting="linearised SGD",
    metric="mean square distance from a network's minimum after 20 linearised steps at 1.02 times the "
    "coherence bound, over that at the start (no number counts as 1e-6), of batch sizes 1, 2 and 4 the "
    "least: SGD / gradient descent",
    verdict={"reproduced": at_least(10), "direction only": at_least(1.5), "not reproduced": otherwise},
    effect="method / baseline",
    worst=1e-6,
    axes=("steps", "mean square distance over that at the start"),
    log_y=True,
    baseline=Arm("gradient descent", ONE),
    method=Arm("SGD", ONE),
    beside=(
        Setting(
            setting="never wrong",
            metric="coherence bound over the exact limit of the learning rate, the least of 200 random sets "
            "of per-example curvatures (no number counts as 0): bound / exact, which is 1",
            verdict={"reproduced": at_least(0.9999), "not reproduced": otherwise},
            effect="method / baseline",
            worst=0.0,
            axes=("draw, in order of the ratio", "learning rate over exact limit"),
            log_y=True,
            baseline=Arm("exact limit", ONE),
            method=Arm("coherence bound", ONE),
            references=(Arm("gradient descent's limit", ONE),),
        ),
        Setting(
            setting="below gradient descent's limit",
            metric="learning rate that is called unstable at a network's minimum for batch size 1 (no number "
            "counts as 1e6): limit of gradient descent / coherence bound",
            verdict={
                "reproduced": at_least(2),
                "direction only": at_least(1.1),
                "not reproduced": otherwise,
            },
            worst=1e6,
            axes=("batch size", "learning rate"),
            log_y=True,
            baseline=Arm("gradient descent's limit", ONE),
            method=Arm("coherence bound", ONE),
            references=(Arm("exact limit", ONE),),
        ),
        Setting(
            setting="the network itself",
            metric="distance from the minimum 300 steps after a push of 1e-5 a weight, at 1.02 times the "
            "coherence bound for batch size 1, over the push, root mean square of 20 runs (further counts "
            "as 1e6): SGD / gradient descent",
            verdict={
                "reproduced": at_least(10),
                "direction only": at_least(1.5),
                "not reproduced": otherwise,
            },
            effect="method / baseline",
            worst=1e-6,
            axes=("steps", "distance over the push"),
            log_y=True,
            baseline=Arm("gradient descent", ONE),
            method=Arm("SGD", ONE),
        ),
    ),
    seeds=5,
    minutes=2,
    notes="The minimum: ReLU network 5-100-1 fitted to 20 random points by heavy ball down to a loss of "
    "1e-12, half the mean square error, float64. An example is in a batch with probability B / 20, as in the "
    "theorem. Linearised distances are taken within the span of the examples' gradients, over 20 000 runs. "
    "The random sets: 5 to 15 examples of 1 or 2 outputs in 3 to 8 dimensions, norms up to tenfold apart, "
    "alike to a random degree, any batch size below n. Nothing is tuned.",
)


def run(setting: str, arm: str, seed: int, above: float) -> Trial:
    task, gram, spec = minimum(seed)
    whole = arm == "gradient descent"
    if setting == "linearised SGD":
        lines = {batch: linearised(gram, batch, above, seed, whole) for batch in BATCHES}
        numbers = {f"batch size {batch}": line[-1] for batch, line in lines.items()}
        least = min(lines.values(), key=lambda line: line[-1])
        return Trial(least[-1], spec, (range(len(least)), least), numbers)
    if setting == "the network itself":
        distances = pushed(task, gram, above, seed, whole)
        return Trial(distances[-1], spec, (range(0, len(distances) * EVERY, EVERY), distances))
    which = {"exact limit": "limit", "coherence bound": "coherence_limit"}.get(arm, "gradient_descent")
    if setting == "never wrong":
        ratios = sorted(getattr(one, which) / one.limit for one in random_curvatures(seed))
        return Trial(ratios[0], spec, (range(1, len(ratios) + 1), ratios))
    limits = [getattr(judged(gram, batch), which) for batch in BATCHES]
    return Trial(limits[0], spec, (BATCHES, limits), {"coherence": judged(gram, 1).coherence})
