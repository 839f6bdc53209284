"""Rethinking re-basin (arXiv 2402.05966): does putting activations right repair merged and pruned nets?"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from statistics import median
from typing import Any

from torch import nn

from thalweg.studies._two_runs import Runs, aligned, along, runs
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.surgery import MergeReport, interpolate, match_statistics, prune

NARROW = "6 layers of 128"
SPARSITY = 0.9
AT = tuple(i / 10 for i in range(11))
ONE, ONE_GPT = grid(lr=(1e-3,)), grid(lr=(4e-3,))
LINE = ("share of the way from one run to the other", "test accuracy")
GAINS = {"reproduced": at_least(0.05), "direction only": at_least(0.01), "not reproduced": otherwise}
HOWS = {"rescaled": "rescale", "repaired": "repair", "reshifted": "reshift"}

STUDY = Study(
    paper="rethink-rebasin",
    claim="For narrow networks matching alone leaves the merge broken, and rescaling alone recovers about as "
    "much accuracy as the full renormalisation.",
    setting="rescaled",
    metric="test accuracy half way between two matched runs of six layers of 128 (a diverged run counts as "
    "0.1): activations rescaled minus untouched",
    verdict=GAINS,
    effect="method - baseline",
    worst=0.1,
    axes=LINE,
    baseline=Arm("matched", ONE),
    method=Arm("rescaled", ONE),
    references=(Arm("repaired", ONE), Arm("reshifted", ONE)),
    beside=(
        Setting(
            setting="rescaled against repaired",
            metric="as in the first setting: rescaled minus repaired",
            verdict={
                "reproduced": at_least(-0.02),
                "direction only": at_least(-0.05),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=0.1,
            axes=LINE,
            baseline=Arm("repaired", ONE),
            method=Arm("rescaled", ONE),
        ),
        Setting(
            setting="repaired without matching",
            metric="as in the first setting, of runs that are not matched: repaired minus untouched",
            verdict=GAINS,
            effect="method - baseline",
            worst=0.1,
            axes=LINE,
            baseline=Arm("unmatched", ONE),
            method=Arm("unmatched, repaired", ONE),
        ),
        Setting(
            setting="language model",
            metric="test loss half way between two matched language models, in nats (a diverged run "
            "counts as 4.575): untouched minus repaired",
            verdict={
                "reproduced": at_least(0.1),
                "direction only": at_least(0.02),
                "not reproduced": otherwise,
            },
            effect="baseline - method",
            worst=4.575,
            axes=("share of the way from one run to the other", "test loss (nats)"),
            baseline=Arm("matched", ONE_GPT),
            method=Arm("repaired", ONE_GPT),
            references=(Arm("rescaled", ONE_GPT),),
        ),
        Setting(
            setting="pruned",
            metric="test accuracy of one run of six layers of 128 with 90% of each layer's weights (but the "
            "last's) set to zero, the smallest, and no training after (a diverged run counts as 0.1): "
            "rescaled to the dense network's activations minus untouched",
            verdict=GAINS,
            effect="method - baseline",
            worst=0.1,
            axes=("sparsity", "test accuracy"),
            baseline=Arm("pruned", ONE),
            method=Arm("rescaled", ONE),
            references=(Arm("repaired", ONE), Arm("reshifted", ONE)),
        ),
    ),
    seeds=3,
    minutes=3,
    notes="The runs of the study of Git Re-Basin: ReLU MLPs on 1300 handwritten digits, a small GPT on "
    "characters. Statistics are those of all training inputs, or of 64 windows of text; every layer but the "
    "last is corrected, each behind the corrections before it. Nothing is tuned: arms differ in what is done "
    "to the same two runs. Thresholds were set before any run, knowing that a trial by others on such an MLP "
    "had seen no gain.",
)


@cache
def merged(kind: str, seed: int, arm: str, at: float) -> tuple[nn.Module, MergeReport]:
    both, found = runs(kind, seed), aligned(kind, seed, "weights")
    assert both is not None and found is not None
    end = both.ends[1] if arm.startswith("unmatched") else found[0]
    how = "repair" if arm == "unmatched, repaired" else HOWS.get(arm)
    return interpolate(both.ends[0], end, at, renormalise=how, batches=both.batches())


def thinned(both: Runs, arm: str, sparsity: float) -> nn.Module:
    """The first run, pruned and corrected."""
    layers = [name for name, layer in both.ends[0].named_modules() if isinstance(layer, nn.Linear)][:-1]
    if not sparsity:
        return both.ends[0]
    model = prune(both.ends[0], sparsity, score="magnitude", scope="layer", layers=layers)[0]
    if arm in HOWS:
        model = match_statistics(model, both.ends[0], both.batches(), how=HOWS[arm])[0]
    return model


def collapse(report: MergeReport, when: str) -> dict[str, float]:
    ratios = [getattr(one, when) for one in report.layers.values()]
    if not ratios:
        return {}
    return {"variance over the goal's, median layer": median(ratios), "the least": min(ratios)}


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    kind = "language model" if setting == "language model" else NARROW
    both = runs(kind, seed)
    if both is None:
        missing = float("nan")
        return Trial(missing, {}, ((0,), (missing,)), defaultdict(lambda: missing))
    judge: Any = both.loss if setting == "language model" else both.accuracy
    if setting == "pruned":
        levels = (0.0, 0.5, 0.7, 0.8, SPARSITY, 0.95)
        shown = along(lambda sparsity: thinned(both, arm, sparsity), judge, levels)
        return Trial(shown[levels.index(SPARSITY)], both.spec, (levels, shown))
    shown = along(lambda at: merged(kind, seed, arm, at)[0], judge, AT)
    half, report = merged(kind, seed, arm, 0.5)
    numbers = {"loss half way": both.loss(half).item(), **collapse(report, "before")}
    return Trial(shown[5], both.spec, (AT, shown), numbers)
