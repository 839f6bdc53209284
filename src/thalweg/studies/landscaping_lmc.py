"""Linear mode connectivity (arXiv 2406.16300): does the barrier between two runs fall the later they part?"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from scipy.stats import rankdata, spearmanr

from thalweg.probe import LayerBarriers
from thalweg.studies._parting_runs import convolutional, pair, predicted_alone
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, between, otherwise

PARTINGS = (0, 20, 50, 100, 200, 400, 800)
LEAST, SEEN = 1e-3, 1e-2  # nats: a barrier below the first counts as that, below the second is not predicted
ONE = grid(lr=(0.1,))
LINE = ("share of the way from one run to the other", "training loss (nats)")
BY_STEP = ("step at which the runs part", "barrier (nats)")
LAYERS = {"reproduced": at_least(2), "direction only": at_least(1.05), "not reproduced": otherwise}

STUDY = Study(
    paper="landscaping-lmc",
    claim="The later two runs part, the lower the loss barrier between their ends; distance and curvature "
    "tell how high it is, and a single layer's barrier is far lower than that of the whole network.",
    setting="parting",
    metric="barrier of the training loss on the line between two runs of 1500 steps, in nats (one below "
    "0.001 counts as 0.001, a diverged run as 100): of runs that differ in batch order from step 0 on / of "
    "runs that share the first 200 steps",
    verdict={"reproduced": at_least(5), "direction only": at_least(1.2), "not reproduced": otherwise},
    worst=100.0,
    axes=LINE,
    baseline=Arm("apart from step 0", ONE),
    method=Arm("apart from step 200", ONE),
    references=(Arm("apart from step 50", ONE),),
    beside=(
        Setting(
            setting="height told by the ends",
            metric="barrier where the parabolas of the two ends meet (loss, slope and curvature there) over "
            "the barrier that is measured, of all parting steps with one of 0.01 nats or more the one that "
            "is furthest off (a diverged run counts as 0)",
            verdict={
                "reproduced": between(0.67, 1.5),
                "direction only": between(0.33, 3),
                "not reproduced": otherwise,
            },
            effect="method / baseline",
            worst=0.0,
            axes=BY_STEP,
            log_y=True,
            baseline=Arm("measured", ONE),
            method=Arm("predicted", ONE),
        ),
        Setting(
            setting="order told by curvature",
            metric="rank correlation of the measured barriers of three layers at seven parting steps with "
            "their prediction (a diverged run counts as -1): loss, slope and curvature at one end minus "
            "squared distance alone",
            verdict={
                "reproduced": at_least(0.05),
                "direction only": at_least(0.01),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=-1.0,
            axes=("rank of the measured barrier", "rank of its prediction"),
            baseline=Arm("distance alone", ONE),
            method=Arm("distance and curvature", ONE),
        ),
        Setting(
            setting="layers",
            metric="barrier of the training loss, in nats, of runs apart from step 0 (a diverged run counts "
            "as 100): with all layers moving / largest of a layer that moves alone",
            verdict=LAYERS,
            worst=100.0,
            axes=LINE,
            baseline=Arm("all layers", ONE),
            method=Arm("one layer", ONE),
        ),
        Setting(
            setting="layers of a convolutional net",
            metric="as in the setting before, of a net with batch normalisation, two initialisations",
            verdict=LAYERS,
            worst=100.0,
            axes=LINE,
            baseline=Arm("all layers", ONE),
            method=Arm("one layer", ONE),
        ),
    ),
    seeds=5,
    minutes=3,
    notes="2000 points of five Gaussian classes in 20-d, noise 2.5, ReLU MLP 20-128-128-5, SGD with momentum "
    "0.9 and a learning rate that falls linearly from 0.1 to 0, batches of 64; both runs fit the training "
    "set. The convolutional net (width 8, 150 steps) learns 1300 handwritten digits; its normalisation "
    "statistics are recomputed on them at every point. Lines have 21 points, those of layers 11. A layer's "
    "barrier is over the chord of the two runs, with the rest at the first run. Nothing is tuned. Sizes, "
    "parting steps and thresholds were set on pilots with seeds from 5000 on, which already had layers with "
    "barriers above the whole one, and predictions from the ends that were right in order and too low.",
)


def of_layers(spec: dict[str, Any], found: LayerBarriers, arm: str) -> Trial:
    path = found.whole if arm == "all layers" else max(found.layers.values(), key=lambda one: one.barrier)
    numbers = {f"barrier of layer {name} alone": height for name, height in found.per_layer.items()}
    return Trial(path.barrier, spec, (path.at, path.losses), numbers)


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    missing = float("nan")
    failed = Trial(missing, {}, ((0,), (missing,)), defaultdict(lambda: missing))
    if setting == "layers of a convolutional net":
        made = convolutional(seed, lr)
        return of_layers(*made, arm) if made else failed
    if setting == "layers":
        first = pair(seed, lr, 0)
        return of_layers(first.spec, first.line, arm) if first else failed
    if setting == "parting":
        one = pair(seed, lr, int(arm.rpartition(" ")[2]))
        if one is None:
            return failed
        numbers = {"barrier of the error rate": one.errors, "distance": one.line.whole.distance}
        path = one.line.whole
        return Trial(max(path.barrier, LEAST), one.spec, (path.at, path.losses), numbers)
    found = {parting: pair(seed, lr, parting) for parting in PARTINGS}
    pairs = {parting: one for parting, one in found.items() if one is not None}
    if len(pairs) < len(found):
        return failed
    spec = pairs[0].spec
    if setting == "height told by the ends":
        measured = {parting: one.line.barrier for parting, one in pairs.items()}
        told = {parting: one.curvature.crossing for parting, one in pairs.items()}
        ratios = {k: told[k] / height for k, height in measured.items() if height >= SEEN}
        furthest = max(ratios, key=lambda k: max(ratios[k], 1 / max(ratios[k], 1e-12)))
        numbers = {f"measured barrier, parting at {k}": height for k, height in measured.items()}
        numbers |= {f"predicted / measured, parting at {k}": ratios.get(k, missing) for k in PARTINGS}
        shown = measured if arm == "measured" else told
        score = 1.0 if arm == "measured" else ratios[furthest]
        return Trial(score, spec, (PARTINGS, [max(shown[k], LEAST) for k in PARTINGS]), numbers)
    rows = [
        (path.barrier, predicted_alone(one.alone[layer], path.ends[1]), path.distance**2)
        for one in pairs.values()
        for layer, path in one.line.layers.items()
    ]
    heights, told_heights, squares = map(rankdata, zip(*rows, strict=True))
    ranks = squares if arm == "distance alone" else told_heights
    order = heights.argsort(kind="stable")
    curve = (range(1, len(rows) + 1), ranks[order].tolist())
    return Trial(float(spearmanr(heights, ranks).statistic), spec, curve)
