"""Runs on digits with the ten top Hessian eigenvectors known along the way, for the subspace study."""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from thalweg import optim
from thalweg.probe import share_in_span, sharpness, subspace_overlap, top_subspace
from thalweg.tasks import MLP, cross_entropy, handwritten_digits, minibatch

CLASSES, BATCH, STEPS, EVERY = 10, 64, 1200, 60
SETTLED, FIRST = 240, 300  # steps from which the share counts, and at which the span is taken that must stay
TURN, LATER, REFRESH = 100, 400, 10  # when the cutting of gradients begins, and for how long it goes on


class Digits:
    def __init__(self, lr: float, seed: int):
        self.split = handwritten_digits(seed=seed)
        self.model = MLP((64, 32, CLASSES), seed=seed)
        self.params = list(self.model.parameters())
        self.optimizer = optim.SGD(self.params, lr=lr)
        self.spec = dict(optim.spec(self.optimizer))

    def loss(self, rows: Tensor | slice = slice(None)) -> Tensor:
        inputs, targets = self.split.train
        return cross_entropy(self.model(inputs[rows]), targets[rows])

    def gradient(self, rows: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(self.loss(rows), self.params)])


@cache  # settings share runs
def watched(lr: float, seed: int) -> tuple[dict[str, Any], list[int], dict[str, list[float]]]:
    """Spec, steps, and what was read there: shares, and the overlap with the span at step FIRST."""
    run, source = Digits(lr, seed), torch.Generator().manual_seed(seed)
    steps: list[int] = []
    read: dict[str, list[float]] = {"all": [], "minibatch": [], "random": [], "eigenvalue": []}
    spans: list[Tensor] = []

    def look(step: int, *_: Any) -> None:
        if step % EVERY and step != STEPS - 1:
            return
        found = top_subspace(run.loss, run.params, CLASSES, iterations=80)
        spans.append(torch.stack(found.vectors))
        batches = [torch.randint(len(run.split.train[1]), (BATCH,), generator=source) for _ in range(20)]
        steps.append(step)
        read["all"].append(found.share)
        read["minibatch"].append(fmean(share_in_span(run.gradient(rows), spans[-1]) for rows in batches))
        read["random"].append(found.chance)
        read["eigenvalue"].append(found.eigenvalues[0])

    minibatch(run.model, run.split, run.optimizer, STEPS, BATCH, seed, evaluate_every=STEPS, on_step=look)
    read["overlap"] = [subspace_overlap(spans[steps.index(FIRST)], span) for span in spans]
    return run.spec, steps, read


def cut(part: str, lr: float, seed: int) -> tuple[dict[str, Any], tuple[int, ...], tuple[float, ...]]:
    """Spec, steps and training loss of a run in which, after TURN steps, a part of each gradient acts."""
    run = Digits(lr, seed)
    span: list[Tensor] = []

    def project(step: int, *_: Any) -> None:
        if step < TURN or part == "whole gradient":
            return
        if step % REFRESH == 0:
            span[:] = sharpness(run.loss, run.params, top=CLASSES, iterations=80).vectors
        whole = torch.cat([p.grad.flatten() for p in run.params if p.grad is not None])
        basis = torch.stack(span)
        within = basis.T @ (basis @ whole)
        kept = within if part == "within" else whole - within
        for p, piece in zip(run.params, kept.split([p.numel() for p in run.params]), strict=True):
            p.grad = piece.view_as(p)

    steps = TURN + LATER
    curve = minibatch(
        run.model, run.split, run.optimizer, steps, BATCH, seed, evaluate_every=20, on_step=project
    )
    return run.spec, curve.steps, curve.train_loss
