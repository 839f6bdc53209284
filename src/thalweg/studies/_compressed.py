"""What the studies of compression share: a small language model, trained once a seed, and what it loses.

A GPT of three layers and width 96 over characters (WIDTH, LAYERS and so on below). The seed decides weights,
training and calibration windows; the held-out windows are always the same. What is reported is how much the
validation loss rises by the edit.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from thalweg import optim
from thalweg.studies._language import text
from thalweg.studies.study import Trial
from thalweg.tasks import GPT, VOCABULARY, next_character

STEPS, WARMUP, RATE = 800, 60, 4e-3
LAYERS, WIDTH, HEADS, CONTEXT, BATCH = 3, 96, 4, 64, 16
SEQUENCES = 64  # windows to calibrate on
LEAST, WORST = 1e-4, 10.0  # nats a character lost
SETUP = (
    "A GPT of three layers and width 96 on characters of the standard library, trained for 800 steps of 16 "
    "windows by AdamW; only the linear layers in its blocks are edited, without retraining. Calibration: 64 "
    "windows of 64 characters of the training part. The loss is measured on 256 held-out windows. "
)


@cache
def dense(seed: int) -> tuple[nn.Module, dict[str, Any], float]:
    """The trained model, the spec of its optimizer, and its validation loss."""
    model = GPT(len(VOCABULARY), CONTEXT, layers=LAYERS, heads=HEADS, width=WIDTH, seed=seed)
    optimizer = optim.AdamW(model.parameters(), lr=RATE)
    spec = dict(optim.spec(optimizer))
    next_character(
        model,
        text(),
        optimizer,
        STEPS,
        batch_size=BATCH,
        context=CONTEXT,
        seed=seed,
        evaluate_every=STEPS,
        schedule=LambdaLR(optimizer, optim.linear_decay(STEPS, WARMUP)),
    )
    model.eval()
    return model, spec, validation_loss(model)


@cache
def held_out() -> tuple[Tensor, Tensor]:
    return text().batch("test", 256, CONTEXT, torch.Generator().manual_seed(0))


@torch.no_grad()
def validation_loss(model: nn.Module) -> float:
    """Nats a character on the held-out windows."""
    return mean_loss(model, held_out()).item()


def mean_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = model(batch[0])
    return functional.cross_entropy(logits.flatten(0, 1), batch[1].flatten())


def calibration(seed: int, sequences: int = SEQUENCES) -> list[tuple[Tensor, Tensor]]:
    """Training windows, one a batch."""
    source = torch.Generator().manual_seed(10_000 + seed)
    inputs, targets = text().batch("train", sequences, CONTEXT, source)
    return list(zip(inputs.split(1), targets.split(1), strict=True))


def lost(seed: int, edited: nn.Module, amount: float, **numbers: float) -> Trial:
    """The trial whose score is how much the validation loss rose; ``amount`` is the curve's x."""
    _, spec, before = dense(seed)
    after = validation_loss(edited)
    shown = {"validation loss before": before, "validation loss after": after, **numbers}
    return Trial(max(after - before, LEAST), spec, ((0.0, amount), (before, after)), shown)
