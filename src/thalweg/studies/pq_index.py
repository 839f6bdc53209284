"""PQ index (arXiv 2302.05601): does it tell how much can still be pruned, and does cutting by it pay?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from thalweg.studies._digit_rounds import accuracy, network, order, train
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import at_least, otherwise
from thalweg.surgery import adaptive_cut, pq_index, prune_in_rounds, share_cut

STEPS, ROUNDS, SLACK = 300, 15, 0.01
LOTTERY, ADAPTIVE = "a fixed share", "by the index"
ONE = grid(share=(0.2,))
# Cuts of a fifth made before each point: density 1, 0.13, 0.012 and 0.004.
POINTS = {"dense": 0, "pruned well": 9, "hardly any left": 20, "collapsing": 25}
MOVES = {"reproduced": at_least(1.1), "direction only": at_least(1.02), "not reproduced": otherwise}
AXES = ("cuts of 20%", "PQ index of the weights left")


def turn(setting: str, baseline: str, method: str, effect: str, metric: str) -> Setting:
    return Setting(
        setting=setting,
        metric=f"PQ index (p 0.5, q 1) of the weights left, trained, all layers together (a diverged run "
        f"counts as {1 if effect.startswith('b') else 0.001:g}): {metric}",
        verdict=MOVES,
        effect=effect,
        worst=1.0 if effect.startswith("b") else 0.001,
        axes=AXES,
        baseline=Arm(baseline, ONE),
        method=Arm(method, ONE),
    )


STUDY = Study(
    paper="pq-index",
    claim="Cutting as many weights a round as the index allows ends at fewer weights than a fixed share, at "
    "equal accuracy; the index falls at first, rises when little is left to prune, and falls at collapse.",
    setting="weights left at equal accuracy",
    metric="least share of the weights left within 15 cuts with a test accuracy at most 0.01 below that of "
    "the dense network (none, or a diverged run, counts as 1): fixed share / by the index",
    verdict={"reproduced": at_least(1.2), "direction only": at_least(1.02), "not reproduced": otherwise},
    worst=1.0,
    axes=("cuts", "share of the weights left"),
    baseline=Arm(LOTTERY, grid(amount=(0.2, 0.25, 0.3, 0.4, 0.5))),
    method=Arm(ADAPTIVE, grid(amount=(1.0, 1.5, 2.0, 4.0, 8.0))),
    beside=(
        turn("first it falls", "dense", "pruned well", "baseline / method", "dense / after 9 cuts of 20%"),
        turn(
            "then it rises",
            "pruned well",
            "hardly any left",
            "method / baseline",
            "after 20 cuts of 20% / after 9",
        ),
        turn(
            "at last it falls",
            "hardly any left",
            "collapsing",
            "baseline / method",
            "after 20 cuts of 20% / after 25",
        ),
    ),
    seeds=5,
    minutes=3.5,
    notes="MLP 64-128-128-10 on the digits, SGD 0.1 with Nesterov momentum 0.9, 300 steps of 64 a round, "
    "survivors return to their first values. One index and one threshold for the whole model. The fixed "
    "share is chosen of five, and so is gamma, the factor on what the index allows, at p 0.5, q 1, eta 0 "
    "and at most 0.9 a round. A brief trial before the rules were written had shown the index to fall and "
    "rise about here, and cuts with gamma 1 to become ever smaller. A first run had 3 seeds, of which the "
    "first setting came to 0.065, 0.41 and 1.65; two were added.",
)


@dataclass(frozen=True)
class Rounds:
    spec: dict[str, Any]
    densities: list[float]
    indices: list[float]
    accuracies: list[float]


@cache
def pruned(kind: str, amount: float, rounds: int, seed: int) -> Rounds:
    batches = order(seed, STEPS)
    cut = share_cut(amount) if kind == LOTTERY else adaptive_cut(gamma=amount)
    densities, indices, accuracies, spec = [], [], [], {}
    for one in prune_in_rounds(
        network((128, 128), seed),
        lambda model, masks: train(model, masks, batches, 0, lambda _: 1.0, nesterov=True),
        cut,
        rounds=rounds,
    ):
        spec = one.result
        left = torch.cat([one.model.get_parameter(name)[mask] for name, mask in one.masks.items()])
        densities.append(one.density)
        indices.append(pq_index(left) if bool(left.isfinite().all()) else float("nan"))
        accuracies.append(accuracy(one.model))
    return Rounds(spec, densities, indices, accuracies)


def run(setting: str, arm: str, seed: int, amount: float = 0.2, share: float = 0.2) -> Trial:
    if arm in POINTS:
        one, at = pruned(LOTTERY, share, max(POINTS.values()), seed), POINTS[arm]
        numbers = {"share of the weights left": one.densities[at], "accuracy": one.accuracies[at]}
        cuts = range(at + 1)
        return Trial(one.indices[at], one.spec, (cuts, one.indices[: at + 1]), numbers)
    one = pruned(arm, amount, ROUNDS, seed)
    least = one.accuracies[0] - SLACK
    fine = [d for d, a in zip(one.densities, one.accuracies, strict=True) if a >= least]
    numbers = {
        "accuracy, dense": one.accuracies[0],
        "share of the weights left in the end": one.densities[-1],
    }
    return Trial(min(fine), one.spec, (range(ROUNDS + 1), one.densities), numbers)
