"""Gradient coherence (arXiv 2203.10036): do examples with true labels help each other more than shuffled?"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thalweg import optim
from thalweg.probe import GradientCoherence, gradient_coherence
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, between, otherwise
from thalweg.tasks import CNN, MLP, handwritten_digits, noisy_clusters

EXAMPLES, BATCH, STEPS = 512, 32, 4000
CHANCE = 2.302585  # the loss, in nats, of equal guesses among ten classes
LEVELS = (2.2, 2.0, 1.5, 1.0, 0.5, 0.2, 0.1)
COMPARED = (2.0, 1.5, 1.0, 0.5)
ONE = grid(lr=(0.1,))
TRUE, SHUFFLED = Arm("true labels", ONE), Arm("shuffled labels", ONE)
LIMIT = Arm("orthogonal gradients", ONE)
AT = "m-coherence of the gradients of 512 training examples"
OVER = (
    "geometric mean of its values when the training loss first falls to 2.0, 1.5, 1.0 and 0.5 nats (below 1, "
    "and a run that is not there after 4000 steps, counts as 1)"
)
AXES = ("training loss gone, of 2.30 (nats)", "m-coherence")
RATIO = {"reproduced": at_least(2), "direction only": at_least(1.1), "not reproduced": otherwise}
MANY = {"reproduced": at_least(3), "direction only": at_least(1.1), "not reproduced": otherwise}
NEAR = {"reproduced": between(0.5, 2), "direction only": between(0.25, 4), "not reproduced": otherwise}


def of(name: str, metric: str, rules: dict[str, Rule], worst: float, baseline: Arm, method: Arm) -> Setting:
    return Setting(
        setting=name,
        metric=metric,
        verdict=rules,
        effect="method / baseline",
        worst=worst,
        axes=AXES,
        baseline=baseline,
        method=method,
    )


STUDY = Study(
    paper="gradient-coherence",
    claim="At equal training loss the gradients of single examples agree far more with true labels than with "
    "random ones, whose coherence is at first that of orthogonal gradients.",
    setting="at equal loss",
    metric=f"{AT}, {OVER}: true labels / shuffled labels; digits, MLP",
    verdict=RATIO,
    effect="method / baseline",
    worst=1.0,
    axes=AXES,
    baseline=SHUFFLED,
    method=TRUE,
    beside=(
        of(
            "at equal loss, CNN",
            "as the first, with a convolutional network (what does not get there counts as 1)",
            *(RATIO, 1.0, SHUFFLED, TRUE),
        ),
        of(
            "at equal loss, clusters",
            "as the first, with ten Gaussian clusters in 20-d for the digits (what does not get there counts "
            "as 1)",
            *(RATIO, 1.0, SHUFFLED, TRUE),
        ),
        of(
            "early",
            f"{AT} when the training loss first falls to 2.0 nats (below 1, and what is not there after 4000 "
            "steps, counts as 1): true labels / shuffled labels; digits, MLP",
            *(MANY, 1.0, SHUFFLED, TRUE),
        ),
        of(
            "shuffled labels, early",
            f"{AT} with shuffled labels when the training loss first falls to 2.0 nats (a run that is not "
            "there after 4000 steps counts as 0.01), over that of orthogonal gradients, which is 1",
            *(NEAR, 0.01, LIMIT, SHUFFLED),
        ),
        of(
            "shuffled labels, throughout",
            "as the one before, geometric mean over 2.0, 1.5, 1.0 and 0.5 nats",
            *(NEAR, 0.01, LIMIT, SHUFFLED),
        ),
        of(
            "decay",
            f"{AT} with true labels when the training loss first falls to 2.0 nats, over that at 0.1 nats (a "
            "run that is not there after 4000 steps counts as 0.01)",
            *(MANY, 0.01, Arm("fitted", ONE), Arm("early", ONE)),
        ),
    ),
    minutes=1.5,
    notes="512 examples of ten classes, MLP 64-128-128-10 or a CNN of width 16, plain SGD with batches of 32 "
    "and learning rate 0.1, which fits shuffled labels too within 4000 steps; seen on other seeds, not "
    "tuned. The loss is looked at every 5 steps, in the first 20 at each. m-coherence is 1 for orthogonal "
    "gradients and 512 for equal ones. In the pilots it rose with shuffled labels too, once half of the loss "
    "was gone.",
)


def per_example(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@cache  # settings share runs
def followed(task: str, shuffled: bool, seed: int, lr: float) -> tuple[dict[str, Any], dict[float, float]]:
    """Spec, and the m-coherence at each loss level that the run got to."""
    if task == "clusters":
        split = noisy_clusters(EXAMPLES, classes=10, spread=1.0, noisy_labels=0, seed=seed)
        model: nn.Module = MLP((20, 128, 128, 10), seed=seed)
    else:
        split = handwritten_digits(1000, shape="image" if task == "CNN" else "flat", seed=seed)
        model = CNN(width=16, seed=seed) if task == "CNN" else MLP((64, 128, 128, 10), seed=seed)
    inputs, targets = (t[:EXAMPLES] for t in split.train)
    source = torch.Generator().manual_seed(10_000 + seed)
    if shuffled:
        targets = targets[torch.randperm(EXAMPLES, generator=source)]
    optimizer = optim.SGD(model.parameters(), lr=lr)
    spec, found, waiting = dict(optim.spec(optimizer)), {}, list(LEVELS)
    for step in range(STEPS):
        if step % 5 == 0 or step < 20:
            model.eval()
            with torch.no_grad():
                loss = per_example(model, (inputs, targets)).mean().item()
            if loss <= waiting[0]:
                reading: GradientCoherence = gradient_coherence(model, (inputs, targets), per_example)
                while waiting and loss <= waiting[0]:
                    found[waiting.pop(0)] = reading.m_coherence
            model.train()
        if not waiting:
            break
        if step % (EXAMPLES // BATCH) == 0:
            order = torch.randperm(EXAMPLES, generator=source).split(BATCH)
        chosen = order[step % (EXAMPLES // BATCH)]
        optimizer.zero_grad()
        per_example(model, (inputs[chosen], targets[chosen])).mean().backward()
        optimizer.step()
    return spec, found


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    task = "CNN" if setting.endswith("CNN") else "clusters" if setting.endswith("clusters") else "digits"
    shuffled = arm not in ("true labels", "early", "fitted")
    spec, found = followed(task, shuffled, seed, lr)
    levels: tuple[float, ...] = COMPARED
    if setting in ("early", "shuffled labels, early", "decay"):
        levels = (0.1,) if arm == "fitted" else (2.0,)
    values = [found.get(level, math.nan) for level in levels]
    score = 1.0 if arm == LIMIT.name else math.prod(values) ** (1 / len(values))
    numbers = {f"m-coherence at {level:g} nats": found.get(level, math.nan) for level in LEVELS}
    if arm == LIMIT.name:
        numbers, found = {}, dict.fromkeys(LEVELS, 1.0)
    gone = [round(CHANCE - level, 3) for level in found]
    return Trial(score, spec, (gone, list(found.values())) if found else ([0.0], [math.nan]), numbers)
