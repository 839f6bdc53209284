"""Logits so large that the softmax is 1 in working precision, and nothing is learnt any more."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome
from benchmarks.findings.plain import digits_mlp, momentum, train
from benchmarks.findings.scenario import Planted
from thalweg import tasks

NAME = "softmax collapse"
AT = 100


def larger_head(seed: int, planted: bool) -> Outcome:
    def blow_up(step: int, model: nn.Module) -> None:
        if planted and step == AT:
            with torch.no_grad():
                for p in model[4].parameters():
                    p.mul_(20)

    return digits_mlp(seed, AT + 50, after_step=blow_up)


class Halved(nn.Module):
    """Logits in bfloat16, as a careless autocast leaves them; an example collapses once it is well learnt."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.bfloat16()


def low_precision(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = tasks.CNN(width=8, seed=seed)
    if planted:
        model.append(Halved())
    return train(model, split, seed, 150, momentum)


blown_up = Planted(NAME, f"output layer times 20 behind step {AT}", "digits", "MLP", "AdamW", larger_head, AT)
logits_in_bfloat16 = Planted(
    NAME, "softmax and loss in bfloat16", "digits", "CNN", "SGD, momentum", low_precision
)
