"""What the plasticity study trains: a network on a stream of random labels, probed on the way."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from thalweg import optim
from thalweg.probe import dormant_neurons, feature_ranks, plasticity, saturated_units, weight_growth
from thalweg.studies.study import TUNING_SEED
from thalweg.tasks import MLP, minibatch, random_label_stream

TASKS, STEPS, EVERY = 25, 300, 5
PROBED = 1e-3  # the learning rate of the runs that are probed


class Stream(NamedTuple):
    """A run: accuracy at the end of each task, plasticity left every five tasks, and what else was seen."""

    spec: dict[str, Any]
    fitted: list[float]
    at: list[int]
    left: list[float]
    numbers: dict[str, float]


def network(arm: str, seed: int) -> nn.Module:
    return MLP(
        (32, 64, 64, 10),
        activation="leaky_relu" if arm in ("leaky ReLU", "first weights") else "relu",
        norm="layer" if arm == "layer normalisation" else None,
        seed=seed,
    )


@cache  # settings judge the same runs
def trained(arm: str, seed: int, lr: float) -> Stream:
    model = network(arm, seed)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    spec = dict(optim.spec(optimizer))
    # Tuning needs no probe, which would take a tenth of the time again.
    probed = lr == PROBED and seed < TUNING_SEED and arm != "state emptied"
    fitted: list[float] = []
    at, left = [0], [1.0]
    start = 1.0
    for number, task in enumerate(random_label_stream(TASKS, seed=seed), start=1):
        inputs = task.train[0]
        if number == 1 and probed:
            start = probe(model, inputs)
        if arm == "state emptied":
            optimizer.state.clear()
        curve = minibatch(model, task, optimizer, STEPS, seed=seed + number - 1, evaluate_every=STEPS)
        if curve.diverged:
            break
        fitted.append(curve.last.train_accuracy)
        if probed and number % EVERY == 0:
            at.append(number)
            left.append(probe(model, inputs) / start)
    numbers = seen(model, first, inputs) if probed and len(fitted) == TASKS else {}
    return Stream(spec, fitted, at, left, numbers)


def probe(model: nn.Module, inputs: torch.Tensor) -> float:
    return plasticity(model, inputs, tasks=2, steps=100, batch_size=64).score


def seen(model: nn.Module, first: dict[str, torch.Tensor], inputs: torch.Tensor) -> dict[str, float]:
    dormant, ranks = dormant_neurons(model, inputs), feature_ranks(model, inputs)
    return {
        "saturated share": saturated_units(model, inputs).total,
        "dormant share": dormant.total,
        "dead share": dormant.total_dead,
        "effective rank of the last hidden layer": list(ranks.values())[-1].effective_rank,
        "growth of the weights": weight_growth(model, first).total_growth,
    }
