"""Why weight matching works (arXiv 2402.04051): nearness, or agreement of dominant singular vectors?"""

from __future__ import annotations

import copy
from collections import defaultdict
from functools import cache
from itertools import pairwise

import torch
from torch import nn

from thalweg.probe import line_curvature, singular_agreement
from thalweg.studies._two_runs import aligned, line, runs
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.surgery import align

KIND, DEEP = "2 layers of 256", "6 layers of 128"
DOMINANT, LEAST = 0.3, 1e-3
THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ONE = grid(lr=(1e-3,))
VECTORS = ("threshold on singular values, relative to the largest", "agreement R")
LINE = ("share of the way from one run to the other", "test loss (nats)")
RISES = {"reproduced": at_least(0.3), "direction only": at_least(0.1), "not reproduced": otherwise}

STUDY = Study(
    paper="weight-matching-analysis",
    claim="Weight matching lowers the distance between two runs only slightly, while the agreement of their "
    "dominant singular vectors rises from nothing to a large share.",
    setting="dominant vectors",
    metric="agreement R of the singular vectors above 0.3 of the largest value, of two runs of two layers of "
    "256 (a diverged run counts as -1): matched minus as trained",
    verdict=RISES,
    effect="method - baseline",
    worst=-1.0,
    axes=VECTORS,
    baseline=Arm("as trained", ONE),
    method=Arm("weights matched", ONE),
    beside=(
        Setting(
            setting="deep",
            metric="as in the first setting, of two runs of six layers of 128",
            verdict=RISES,
            effect="method - baseline",
            worst=-1.0,
            axes=VECTORS,
            baseline=Arm("as trained", ONE),
            method=Arm("weights matched", ONE),
        ),
        Setting(
            setting="all vectors",
            metric="as in the first setting, both matched: vectors above 0.3 minus all vectors",
            verdict={
                "reproduced": at_least(0.1),
                "direction only": at_least(0.02),
                "not reproduced": otherwise,
            },
            effect="method - baseline",
            worst=-1.0,
            axes=VECTORS,
            baseline=Arm("all", ONE),
            method=Arm("above 0.3", ONE),
        ),
        Setting(
            setting="distance",
            metric="distance of the weights of two layers of 256 (a diverged run counts as 0): matched / as "
            "trained, high if the claim holds",
            verdict={
                "reproduced": at_least(0.75),
                "direction only": at_least(0.6),
                "not reproduced": otherwise,
            },
            effect="method / baseline",
            worst=0.0,
            axes=LINE,
            baseline=Arm("as trained", ONE),
            method=Arm("weights matched", ONE),
        ),
        Setting(
            setting="which vectors to match",
            metric="barrier of the test loss, in nats (one below 0.001 counts as 0.001, a diverged run as "
            "100), after matching weights of which only a part of the spectrum was kept: below 0.3 of the "
            "largest value / above it",
            verdict={"reproduced": at_least(3), "direction only": at_least(1.2), "not reproduced": otherwise},
            worst=100.0,
            axes=LINE,
            baseline=Arm("matched below 0.3", ONE),
            method=Arm("matched above 0.3", ONE),
        ),
    ),
    seeds=3,
    minutes=2,
    notes="The runs of the study of Git Re-Basin: ReLU MLPs on 1300 handwritten digits. In the last setting "
    "the permutation found on filtered weights is applied to the whole ones; biases are matched in both. "
    "Numbers beside: the barrier, and the loss half way that loss, slope and curvature at one end foretell "
    "(arXiv 2402.04051 finds that it misses). Thresholds were set before any run.",
)


def part(model: nn.Module, above: bool) -> nn.Module:
    """A copy whose weight matrices keep one part of their spectrum."""
    new = copy.deepcopy(model)
    with torch.no_grad():
        for p in new.parameters():
            if p.dim() == 2:
                u, values, vh = torch.linalg.svd(p, full_matrices=False)
                keep = (values >= DOMINANT * values[0]) == above
                p.copy_((u * (values * keep)) @ vh)
    return new


@cache
def matched_on(kind: str, seed: int, above: bool) -> nn.Module | None:
    """The second run, permuted as its filtered weights match the first's."""
    both = runs(kind, seed)
    if both is None:
        return None
    first, second = both.ends
    orders = align(part(second, above), part(first, above), both.example)[1].permutations
    new = copy.deepcopy(second)
    layers = [layer for layer in new.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for (makes, reads), order in zip(pairwise(layers), orders.values(), strict=True):
            makes.weight.copy_(makes.weight[order])
            makes.bias.copy_(makes.bias[order])
            reads.weight.copy_(reads.weight[:, order])
    return new


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    kind = DEEP if setting == "deep" else KIND
    both, found = runs(kind, seed), aligned(kind, seed, "weights")
    if both is None or found is None:
        missing = float("nan")
        return Trial(missing, {}, ((0,), (missing,)), defaultdict(lambda: missing))
    new, report = found
    if setting == "which vectors to match":
        end = matched_on(kind, seed, arm == "matched above 0.3")
        assert end is not None
        path = line(both, end)
        return Trial(max(path.barrier, LEAST), both.spec, (path.at, path.losses))
    end = both.ends[1] if arm == "as trained" else new
    path = line(both, end)
    if setting == "distance":
        told = line_curvature(both.loss, both.ends[0], both.ends[0], end)
        numbers = {
            "barrier": path.barrier,
            "loss half way": path.losses[len(path.losses) // 2],
            "loss half way told by one end": told.losses[0] + told.slopes[0] / 2 + told.curvatures[0] / 8,
        }
        score = report.distance[0 if arm == "as trained" else 1]
        return Trial(score, both.spec, (path.at, path.losses), numbers)
    agreement = [singular_agreement(end, both.ends[0], threshold=t) for t in THRESHOLDS]
    curve = (THRESHOLDS, [one.agreement for one in agreement])
    score = agreement[0 if arm == "all" else THRESHOLDS.index(DOMINANT)].agreement
    numbers = {f"share of the bound, {name}": one.share_of_bound for name, one in agreement[0].layers.items()}
    return Trial(score, both.spec, curve, {"barrier": path.barrier, **numbers})
