"""Grokking: pairs learnt by heart at once, the rule much later, when weight decay has done its work."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, watched
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "generalisation under way"
P = 31


class Shared(nn.Module):
    """Both numbers share an embedding; their sum goes through one hidden layer."""

    def __init__(self, seed: int):
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.numbers = nn.Parameter(torch.randn(P, 64, generator=source))
        self.head = tasks.MLP((64, 128, P), seed=seed)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.numbers[tokens[:, 0]] + self.numbers[tokens[:, 2]])


def arithmetic(
    seed: int, planted: bool, operation: str, optimizer: Callable[..., Any], decay: float
) -> Outcome:
    split = tasks.modular_arithmetic(P, operation, 0.4, seed=seed, encoding="tokens")
    model = Shared(seed)
    opt = optimizer(model.parameters(), weight_decay=decay if planted else 0.0)
    return watched(model, opt, repeat(split.train), 500, evaluate=(split.train, split.test))


addition = Planted(
    NAME,
    "weight decay, which turns pairs learnt by heart into the rule",
    f"addition mod {P}",
    "MLP",
    "AdamW",
    lambda seed, planted: arithmetic(
        seed, planted, "+", partial(torch.optim.AdamW, lr=0.01, betas=(0.9, 0.98)), 2.0
    ),
)
multiplication = Planted(
    NAME,
    "weight decay, which turns pairs learnt by heart into the rule",
    f"multiplication mod {P}",
    "MLP",
    "NAdam",
    lambda seed, planted: arithmetic(
        seed,
        planted,
        "*",
        partial(torch.optim.NAdam, lr=0.01, betas=(0.9, 0.98), decoupled_weight_decay=True),
        2.0,
    ),
)
