"""Labels that a random network has given through noise: small, whole and very small batches."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.findings.plain import teacher_mlp
from benchmarks.findings.scenario import Healthy

mlp_momentum = Healthy(
    "noisy teacher",
    "MLP",
    "SGD, momentum",
    lambda seed: teacher_mlp(seed, 400, partial(torch.optim.SGD, lr=0.03, momentum=0.9)),
    accuracy=0.4,
)
mlp_small_batches = Healthy(
    "noisy teacher, batches of 8",
    "MLP",
    "Adam",
    lambda seed: teacher_mlp(seed, 1000, partial(torch.optim.Adam, lr=3e-4), batch=8),
    accuracy=0.4,
)
mlp_large_batches = Healthy(
    "noisy teacher, batches of 1024",
    "MLP",
    "SGD, Nesterov, cosine",
    lambda seed: teacher_mlp(
        seed, 200, partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True), batch=1024, warm=True
    ),
    accuracy=0.4,
)
