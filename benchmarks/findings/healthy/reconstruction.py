"""Digits that a variational autoencoder draws again: a random model, and pixels that are mostly black."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Healthy
from thalweg import tasks


class Autoencoder(nn.Module):
    """From pixels [n, 64] in [0, 1] to logits of them, and the mean and log variance [n, 8] between."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(pixels).chunk(2, -1)
        code = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return self.decoder(code), mean, log_variance


def bound(model: nn.Module, batch: Any) -> Tensor:
    """Minus the evidence's lower bound, a mean over examples."""
    pixels, _ = batch
    logits, mean, log_variance = model(pixels)
    kept = F.binary_cross_entropy_with_logits(logits, pixels, reduction="sum")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (kept + divergence) / len(pixels)


def variational(seed: int) -> Outcome:
    images, targets = tasks.handwritten_digits(shape="image", seed=seed).train
    inputs = ((images - images.min()) / (images.max() - images.min())).flatten(1)
    model = Autoencoder()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    return watched(model, opt, minibatches((inputs, targets), 64, seed), 600, loss_fn=bound)


digits_adam = Healthy("digits, drawn again", "variational autoencoder", "Adam", variational, loss=28.0)
