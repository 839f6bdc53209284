"""The order of two marks in a sequence, by a plain recurrent network."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.findings.plain import clipping, order_rnn
from benchmarks.findings.scenario import Healthy

rnn_adam = Healthy(
    "temporal order, 10 long",
    "RNN",
    "Adam, clipped",
    lambda seed: order_rnn(seed, 400, partial(torch.optim.Adam, lr=1e-3), before_step=clipping(1.0)),
    accuracy=0.9,
)
rnn_rmsprop = Healthy(
    "temporal order, 10 long",
    "RNN",
    "RMSprop, cosine",
    lambda seed: order_rnn(seed, 400, partial(torch.optim.RMSprop, lr=1e-3), warm=True),
    accuracy=0.9,
)
