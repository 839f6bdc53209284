"""Modular addition with enough pairs for the rule to be found while they are learnt."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.findings.loop import Outcome
from benchmarks.findings.plain import train
from benchmarks.findings.scenario import Healthy
from thalweg import tasks


def addition(seed: int) -> Outcome:
    split = tasks.modular_arithmetic(23, "+", 0.8, seed=seed, encoding="tokens")
    model = tasks.GPT(25, 4, layers=1, heads=4, width=64, readout="last", seed=seed)
    adamw = partial(torch.optim.AdamW, lr=3e-3, betas=(0.9, 0.98), weight_decay=1.0)
    return train(model, split, seed, 400, adamw, warm=True)


gpt_adamw = Healthy("addition mod 23", "GPT", "AdamW, cosine", addition, accuracy=0.7)
