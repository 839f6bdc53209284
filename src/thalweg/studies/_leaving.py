"""A minimum, linearised steps about it, and the network pushed off it: runs of the coherence study."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from thalweg import optim
from thalweg.probe import CurvatureGram, SgdStability, curvature_gram, sgd_stability
from thalweg.studies._interpolating import POINTS, Regression, half_square

RUNS, LINEAR_STEPS = 20_000, 20
PUSHES, STEPS, EVERY, PUSH = 20, 300, 10, 1e-5
DRAWS = 200
FAR = 1e6


@cache
def minimum(seed: int) -> tuple[Regression, CurvatureGram, dict[str, Any]]:
    """A network that fits its points, the curvature there, and the spec of plain SGD."""
    task = Regression(seed)
    optimizer = optim.SGD(task.params, lr=0.05, momentum=0.9)
    for _ in range(10_000):
        optimizer.zero_grad()
        loss = task.loss()
        if loss.item() < 1e-12:
            break
        loss.backward()
        optimizer.step()
    spec = dict(optim.spec(optim.SGD(task.params, lr=0.01)))
    return task, curvature_gram(task.model, half_square, task.inputs, task.targets), spec


def judged(gram: CurvatureGram, batch: int) -> SgdStability:
    """The limits under the sampling of the theorem."""
    return sgd_stability(gram, 1.0, batch, sampling="bernoulli", rank=1000)


def drawn(batch: int, shape: tuple[int, ...], source: torch.Generator, whole: bool) -> Tensor:
    """Weight of each example in its batch's sum, before division by the batch size."""
    share = batch / POINTS
    if whole:
        return torch.full(shape, share, dtype=torch.float64)
    return (torch.rand(shape, generator=source, dtype=torch.float64) < share).double()


def linearised(gram: CurvatureGram, batch: int, above: float, seed: int, whole: bool) -> list[float]:
    """Mean square distance over that at the start after each step, within the span of the gradients."""
    source = torch.Generator().manual_seed(seed)
    values, vectors = torch.linalg.eigh(gram.blocks.reshape(POINTS, POINTS))
    rows = vectors * values.clamp_min(0).sqrt()
    rate = above * judged(gram, batch).coherence_limit / batch
    distance = torch.randn(RUNS, POINTS, generator=source, dtype=torch.float64)
    squares = [distance.square().sum().item()]
    for _ in range(LINEAR_STEPS):
        weights = drawn(batch, (RUNS, POINTS), source, whole)
        distance = distance - rate * (distance @ rows.T * weights) @ rows
        squares.append(distance.square().sum().item())
    return [square / squares[0] for square in squares]


def pushed(task: Regression, gram: CurvatureGram, above: float, seed: int, whole: bool) -> list[float]:
    """Root mean square distance over the push, every few steps, at batch size one; the weights return."""
    source = torch.Generator().manual_seed(seed)
    start = [p.detach().clone() for p in task.params]
    optimizer = optim.SGD(task.params, lr=above * judged(gram, 1).coherence_limit)
    squares = torch.zeros(STEPS // EVERY + 1, dtype=torch.float64)
    for _ in range(PUSHES):
        with torch.no_grad():
            for p, w in zip(task.params, start, strict=True):
                p.copy_(w + PUSH * torch.randn(w.shape, generator=source, dtype=torch.float64))
        for step in range(STEPS + 1):
            if step % EVERY == 0:
                moved = sum((p.detach() - w).square().sum() for p, w in zip(task.params, start, strict=True))
                squares[step // EVERY] += torch.as_tensor(moved).nan_to_num(math.inf) / PUSHES
            weights = drawn(1, (POINTS, 1), source, whole)
            optimizer.zero_grad()
            errors = task.model(task.inputs) - task.targets
            (weights * errors.square()).sum().div(2).backward()
            optimizer.step()
    with torch.no_grad():
        for p, w in zip(task.params, start, strict=True):
            p.copy_(w)
    push = PUSH * math.sqrt(sum(p.numel() for p in task.params))
    return (squares.sqrt() / push).clamp_max(FAR).tolist()


@cache
def random_curvatures(seed: int) -> list[SgdStability]:
    source = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=source))

    found = []
    for _ in range(DRAWS):
        n, k, d = between(5, 15), between(1, 2), between(3, 8)
        own, common = (torch.randn(size, k, d, generator=source, dtype=torch.float64) for size in (n, 1))
        norms = 10 ** torch.rand(n, 1, 1, generator=source, dtype=torch.float64)
        flat = (norms * (own + 2 * torch.rand(1, generator=source) * common)).view(n * k, d)
        gram = CurvatureGram((flat @ flat.T).view(n, k, n, k), torch.zeros(n, dtype=torch.float64))
        found.append(judged(gram, between(1, n - 1)))
    return found
