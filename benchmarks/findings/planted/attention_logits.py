"""Attention logits grow: rates that a transformer without normalised queries and keys does not bear."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks

FINDING = "attention-logit growth"
JUMP = 100
STEPS = 180


class Rows(nn.Module):
    """A torch transformer encoder that reads an 8 x 8 image [n, 1, 8, 8] row by row; logits [n, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.places = nn.Parameter(0.1 * torch.randn(8, 32))
        layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.embed(images.squeeze(1)) + self.places).mean(1))


@cache
def text() -> tasks.CharText:
    return tasks.library_text(max_characters=200_000)


def jump(opt: torch.optim.Optimizer, planted: bool):
    """Thirty times the learning rate from step ``JUMP`` on."""

    def before_step(step: int, model: nn.Module) -> None:
        if planted and step == JUMP:
            for group in opt.param_groups:
                group["lr"] *= 30

    return before_step


def gpt_jump(seed: int, planted: bool) -> Outcome:
    model = tasks.GPT(97, 32, layers=2, heads=2, width=32, seed=seed)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-3)
    source = torch.Generator().manual_seed(seed)
    batches = iter(lambda: text().batch("train", 8, 32, source), None)
    return watched(model, opt, batches, STEPS, before_step=jump(opt, planted))


def rows_jump(seed: int, planted: bool) -> Outcome:
    split = tasks.handwritten_digits(shape="image", seed=seed)
    model = Rows()
    opt = optim.Lion(model.parameters(), lr=1e-3)
    return watched(model, opt, minibatches(split.train, 32, seed), STEPS, before_step=jump(opt, planted))


def gpt_rate(seed: int, planted: bool) -> Outcome:
    model = tasks.GPT(97, 32, layers=2, heads=2, width=32, seed=seed, qk_norm=not planted)
    opt = torch.optim.AdamW(model.parameters(), lr=0.1)
    warm = torch.optim.lr_scheduler.LambdaLR(opt, optim.linear_decay(STEPS, warmup=40))
    source = torch.Generator().manual_seed(seed)
    batches = iter(lambda: text().batch("train", 8, 32, source), None)
    return watched(model, opt, batches, STEPS, schedule=warm)


text_adamw = Planted(
    FINDING, f"learning rate times 30 at step {JUMP}", "text", "GPT", "AdamW", gpt_jump, JUMP
)
digits_lion = Planted(
    FINDING,
    f"learning rate times 30 at step {JUMP}",
    "digits",
    "transformer encoder",
    "Lion",
    rows_jump,
    JUMP,
)
text_rate = Planted(
    FINDING, "peak rate 0.1 without normalised queries and keys", "text", "GPT", "AdamW, warm-up", gpt_rate
)
