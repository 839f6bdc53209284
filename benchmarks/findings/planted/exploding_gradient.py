"""Gradients that explode: back through layers and through time, and over the steps of a run."""

from __future__ import annotations

import torch

from benchmarks.findings.loop import Outcome, minibatches, watched
from benchmarks.findings.scenario import Planted
from thalweg import optim, tasks

FINDING = "exploding gradient"
STEPS = 60


def amplified(model: torch.nn.Module, times: float) -> None:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.mul_(times)


def rectified(seed: int, planted: bool) -> Outcome:
    """Sixteen ReLU layers, whose first weights are 1.7 times what He's rule says."""
    split = tasks.handwritten_digits(seed=seed)
    model = tasks.MLP((64, *[64] * 16, 10), init="he", seed=seed)
    amplified(model, 1.7 if planted else 1.0)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS)


def squashed(seed: int, planted: bool) -> Outcome:
    """Thirty tanh layers, whose first weights are 4 times what Xavier's rule says."""
    split = tasks.noisy_teacher(seed=seed)
    model = tasks.MLP((32, *[64] * 30, 10), activation="tanh", init="xavier", seed=seed)
    amplified(model, 4.0 if planted else 1.0)
    opt = torch.optim.SGD(model.parameters(), lr=1e-4)
    return watched(model, opt, minibatches(split.train, 64, seed), STEPS)


def recurrent(seed: int, planted: bool) -> Outcome:
    """A recurrent network of spectral radius 2.5 over 60 steps; the recipe of arXiv 1211.5063 otherwise."""
    split = tasks.temporal_order(length=60, seed=seed)
    model = tasks.RNN(6, 50, 4, radius=2.5 if planted else 1.0, seed=seed)
    opt = optim.Descent(list(model.parameters()), optim.clip_norm(1.0), lr=0.01)
    return watched(model, opt, minibatches(split.train, 20, seed), 40)


def climbing(seed: int, planted: bool) -> Outcome:
    """From step 80 on the loss is descended in the wrong direction: every step makes the gradient larger."""
    split = tasks.noisy_clusters(seed=seed)
    model = tasks.MLP((20, 64, 64, 5), seed=seed)
    opt = torch.optim.SGD(model.parameters(), lr=0.03)

    def turn(step: int, model: torch.nn.Module) -> None:
        if planted and step >= 80:
            for p in model.parameters():
                p.grad.neg_()

    return watched(model, opt, minibatches(split.train, 50, seed), 200, before_step=turn)


deep_relu = Planted(FINDING, "first weights 1.7 times He's, 16 layers", "digits", "MLP", "AdamW", rectified)
deep_tanh = Planted(
    FINDING, "first weights 4 times Xavier's, 30 layers", "noisy teacher", "MLP", "SGD", squashed
)
through_time = Planted(
    FINDING, "spectral radius 2.5 over 60 steps", "temporal order", "RNN", "SGD, clipped", recurrent
)
wrong_sign = Planted(FINDING, "gradient ascent from step 80", "clusters", "MLP", "SGD", climbing, onset=80)
