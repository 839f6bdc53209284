"""What trains inside the trainers of others: a few kinds of recipes, and how a plain loop would do it."""

import os

import pytest
import torch

from thalweg import optim

os.environ["HF_HUB_OFFLINE"] = "1"

# State shaped like the parameter, of two speeds, of low rank, in few bits, and beside the inner optimizer's.
HOSTED = {
    "AdamW": lambda params: optim.AdamW(params, lr=0.01),
    "Lion": lambda params: optim.Lion(params, lr=0.008, weight_decay=0.1),
    "GaLore": lambda params: optim.GaLore(params, lr=0.04, rank=3, every=3),
    "AdEMAMix": lambda params: optim.AdEMAMix(params, lr=0.01, warmup=10),
    "QGaLore": lambda params: optim.QGaLore(params, lr=0.04, rank=3, every=3, smallest=0),
    "Average": lambda params: optim.Average(optim.AdamW(params, lr=0.01), decay=0.8, start=2),
}
every_hosted = pytest.mark.parametrize("name", HOSTED)


def ramp(step):
    """A learning rate's factor: up over 2 steps, then down to nothing at step 10."""
    return step / 2 if step < 2 else (10 - step) / 8


def plain_loop(model, optimizer, steps, losses, clip, accumulate=2):
    """Accumulate ``losses(model, step)``, clip by norm, step, follow :func:`ramp`."""
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, ramp)
    for step in steps:
        for loss in losses(model, step):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
