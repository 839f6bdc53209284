"""Program text, character by character: a GPT and a Llama."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.findings.loop import Outcome, watched
from benchmarks.findings.plain import clipping, decaying, text_gpt, windows
from benchmarks.findings.scenario import Healthy
from thalweg import optim, tasks

# The most common character alone gives 3.1 nats.
LEARNT = 2.9


def llama(seed: int) -> Outcome:
    model = tasks.Llama(97, width=32, feed_forward=64, heads=2, layers=1, seed=seed)
    opt = optim.AdEMAMix(model.parameters(), lr=3e-3)
    return watched(model, opt, windows(seed, 8), 200, schedule=decaying(opt, 200))


def chain(params) -> torch.optim.Optimizer:
    return optim.Descent(params, optim.clip_norm(1.0), optim.adam(), optim.decay(0.1), lr=3e-3)


gpt_adamw = Healthy(
    "text, batches of 8",
    "GPT",
    "AdamW",
    lambda seed: text_gpt(seed, 200, partial(torch.optim.AdamW, lr=3e-3)),
    loss=LEARNT,
)
gpt_clipped = Healthy(
    "text, batches of 32",
    "GPT",
    "AdamW, clipped, cosine",
    lambda seed: text_gpt(
        seed,
        200,
        partial(torch.optim.AdamW, lr=5e-3, betas=(0.9, 0.95), weight_decay=0.1),
        batch=32,
        warm=True,
        before_step=clipping(1.0),
    ),
    loss=LEARNT,
)
gpt_lion = Healthy(
    "text, batches of 8",
    "GPT",
    "Lion, cosine",
    lambda seed: text_gpt(seed, 300, partial(optim.Lion, lr=1e-3, weight_decay=0.1), warm=True),
    loss=LEARNT,
)
llama_ademamix = Healthy("text, batches of 8", "Llama", "AdEMAMix, cosine", llama, loss=LEARNT)
chain_clipped = Healthy(
    "text, batches of 8",
    "GPT",
    "chain: clipping, Adam, decay",
    lambda seed: text_gpt(seed, 200, chain),
    loss=LEARNT,
)
gpt_amsgrad = Healthy(
    "text, batches of 8",
    "GPT",
    "AMSGrad",
    lambda seed: text_gpt(seed, 200, partial(optim.AMSGrad, lr=3e-3)),
    loss=LEARNT,
)
