"""Example forgetting (arXiv 1812.05159): can the examples that are never forgotten be left out?"""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from thalweg import optim
from thalweg.probe import ExampleForgetting
from thalweg.studies.study import Arm, Setting, Study, Trial, grid
from thalweg.studies.verdicts import Rule, at_least, otherwise
from thalweg.tasks import MLP, handwritten_digits
from thalweg.tasks.curve import accuracy

STEPS, BATCH, EVERY = 1200, 32, 100
COUNTED, REPEATS, FLIPPED = 3, 3, 0.1  # runs that count events, trainings a score, share of wrong labels
RATES, ONE_RATE = grid(lr=(0.01, 0.03, 0.1, 0.3)), grid(lr=(0.03,))
LEFT_OUT = (
    "test accuracy of a network trained from new weights, mean of 3 trainings (a diverged run counts as 0), "
    "with {} of the training examples left out: those with the fewest forgetting events in 3 earlier runs "
    "minus {}, each at the learning rate that is best for this number"
)


def rules(enough: float, some: float) -> dict[str, Rule]:
    return {"reproduced": at_least(enough), "direction only": at_least(some), "not reproduced": otherwise}


def against(baseline: str, share: str, other: str, enough: float, some: float) -> dict[str, Any]:
    return {
        "metric": LEFT_OUT.format(share, other),
        "verdict": rules(enough, some),
        "effect": "method - baseline",
        "worst": 0.0,
        "axes": ("steps", "test accuracy"),
        "baseline": Arm(baseline, RATES),
        "method": Arm("least forgotten", RATES),
    }


STUDY = Study(
    paper="example-forgetting",
    claim="Of the training examples, those that are never forgotten can be left out at little cost: less "
    "than leaving out as many at random, and hardly any against training on all.",
    setting="half left out",
    **against("random", "half", "as many at random", 0.005, 0.001),
    beside=(
        Setting(
            setting="seven tenths left out",
            **against("random", "seven tenths", "as many at random", 0.005, 0.001),
        ),
        Setting(
            setting="half against all",
            **against("all examples", "half", "all of the examples kept", -0.003, -0.01),
        ),
        Setting(
            setting="wrong labels",
            metric="a tenth of the training labels wrong: share of them among the tenth of the examples "
            "with most forgetting events in 3 runs at learning rate 0.03 (a diverged run counts as 0) minus "
            "their share in a random tenth",
            verdict=rules(0.3, 0.05),
            effect="method - baseline",
            worst=0.0,
            axes=("share of the examples, most forgotten first", "share of the wrong labels in it"),
            baseline=Arm("random", ONE_RATE),
            method=Arm("most forgotten", ONE_RATE),
        ),
    ),
    seeds=10,
    minutes=5,
    notes="1300 of the 1797 handwritten digits to train on; ReLU MLP 64-128-10, momentum 0.9, batches of 32, "
    "1200 steps whatever the number of examples. Events are counted in runs with other weights and orders, "
    "at the learning rate of the arm; never learned counts as forgotten every time. Sizes were chosen on "
    "seeds 500 and 501.",
)


@cache
def task(seed: int, noisy: float = 0.0) -> Any:
    return handwritten_digits(noisy_labels=noisy, seed=seed)


def train(seed: int, weights: int, lr: float, kept: Tensor, noisy: float = 0.0) -> Any:
    """Spec, test accuracies at some steps, and the counted events; accuracy NaN where it diverged."""
    split = task(seed, noisy)
    inputs, targets = split.train
    model = MLP((64, 128, 10), seed=weights)
    optimizer = optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    spec = dict(optim.spec(optimizer))
    seen = ExampleForgetting(len(targets))
    source = torch.Generator().manual_seed(weights)
    curve: list[float] = []
    order = kept[:0]
    for step in range(1, STEPS + 1):
        if len(order) < BATCH:
            order = kept[torch.randperm(len(kept), generator=source)]
        chosen, order = order[:BATCH], order[BATCH:]
        logits = model(inputs[chosen])
        seen.update(chosen, logits.argmax(1) == targets[chosen])
        loss = cross_entropy(logits, targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            curve.append(accuracy(model, *split.test) if loss.isfinite() else float("nan"))
    return spec, curve, seen.counts()


@cache  # arms and settings share the runs that count
def counted(seed: int, lr: float, noisy: float = 0.0) -> Any:
    """Events of each example added up over runs, and the runs."""
    every = torch.arange(len(task(seed, noisy).train[1]))
    runs = [train(seed, 100 * seed + 50 + number, lr, every, noisy) for number in range(COUNTED)]
    return sum(counts.events for _, _, counts in runs), runs


def shuffled(examples: int, seed: int) -> Tensor:
    # Not the task's own seed, whose first permutation says which labels are wrong.
    return torch.randperm(examples, generator=torch.Generator().manual_seed(100 * seed + 99))


@cache  # settings share arms
def left_out(arm: str, seed: int, lr: float, share: float) -> Trial:
    events, runs = counted(seed, lr)
    order = shuffled(len(events), seed) if arm == "random" else events.argsort(stable=True)
    kept = order[0 if arm == "all examples" else round(share * len(events)) :]
    trained = [train(seed, 100 * seed + number, lr, kept) for number in range(REPEATS)]
    mean = [fmean(at) for at in zip(*(curve for _, curve, _ in trained), strict=True)]
    first, second = (counts.events.double() for _, _, counts in runs[:2])
    return Trial(
        score=mean[-1],
        optimizer=trained[0][0],
        curve=(range(EVERY, STEPS + 1, EVERY), mean),
        numbers={
            "share never forgotten in 3 runs": (events == 0).double().mean().item(),
            "correlation of two runs' events": torch.corrcoef(torch.stack([first, second]))[0, 1].item(),
        },
    )


def wrong_labels(arm: str, seed: int, lr: float) -> Trial:
    events, runs = counted(seed, lr, FLIPPED)
    wrong = task(seed, FLIPPED).train[1] != task(seed).train[1]
    order = shuffled(len(events), seed) if arm == "random" else events.argsort(descending=True, stable=True)
    found = (wrong[order].double().cumsum(0) / wrong.sum()).tolist()
    tenths = [round(len(events) * tenth / 10) - 1 for tenth in range(1, 11)]
    curve = [found[place] for place in tenths]
    return Trial(curve[0], runs[0][0], ([place / len(events) for place in tenths], curve))


def run(setting: str, arm: str, seed: int, lr: float) -> Trial:
    if setting == "wrong labels":
        return wrong_labels(arm, seed, lr)
    return left_out(arm, seed, lr, 0.7 if "seven" in setting else 0.5)
