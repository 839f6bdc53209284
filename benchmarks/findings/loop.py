"""One plain training loop that is watched, with places to plant a fault in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import thalweg
from thalweg.watch import Finding

Pair = tuple[Tensor, Tensor]
Step = Callable[[int, nn.Module], Any]
Loss = Callable[[nn.Module, Any], Tensor]

# Every sensor runs as often as it wants: a thousand seconds of watching for each of training.
UNBOUNDED = 1e3


@dataclass
class Outcome:
    """What a watched run gave.

    Attributes:
        findings: in the order in which they were told; ``found`` is the step of the reading that told each.
        losses: training loss of each step, the first of step 1.
        accuracy: on the second part of ``evaluate`` after the last step; nan without ``evaluate``.
    """

    findings: list[Finding]
    losses: list[float]
    accuracy: float = math.nan


def cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    """Mean cross entropy of logits [..., classes] against targets [...]."""
    logits = model(batch[0])
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), batch[1].reshape(-1))


def minibatches(pair: Pair, size: int, seed: int) -> Iterator[Pair]:
    """The examples in a new order every pass, for ever; the last batch of a pass may be smaller."""
    inputs, targets = pair
    source = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(inputs), generator=source).split(size):
            yield inputs[index], targets[index]


def watched(
    model: nn.Module,
    opt: torch.optim.Optimizer,
    batches: Iterator[Any],
    steps: int,
    *,
    loss_fn: Loss = cross_entropy,
    evaluate: tuple[Pair, Pair] | None = None,
    before_step: Step | None = None,
    after_step: Step | None = None,
    schedule: Any = None,
    log: Callable[[int, nn.Module], Mapping[str, float]] | None = None,
) -> Outcome:
    """Train for ``steps`` steps with every sensor as often as it wants.

    Args:
        batches: whole batch: ``itertools.repeat(pair)``; else :func:`minibatches` or ``iter(draw, None)``.
        evaluate: (train, test), each inputs and targets, as ``thalweg.watch`` takes it.
        before_step: ``before_step(step, model)``, gradients being there and weights not yet moved.
        after_step: ``after_step(step, model)``, weights moved and gradients cleared.
        schedule: a torch learning-rate scheduler, stepped after each step.
        log: ``log(step, model)`` to further numbers for ``run.log``, by name; called before the step.

    Raises:
        RuntimeError: if a sensor or a rule failed, which in a user's run would only be told.
    """
    losses: list[float] = []
    with thalweg.watch(model, opt, loss_fn=loss_fn, evaluate=evaluate, budget=UNBOUNDED, store=None) as run:
        for step in range(1, steps + 1):
            batch = next(batches)
            loss = loss_fn(model, batch)
            loss.backward()
            losses.append(loss.item())
            if before_step is not None:
                before_step(step, model)
            run.log(loss=loss, batch=batch, **(log(step, model) if log is not None else {}))
            opt.step()
            opt.zero_grad()
            if schedule is not None:
                schedule.step()
            if after_step is not None:
                after_step(step, model)
    failed = [f"{name}: {why}" for name, why in run.disabled.items()] + run.recorder.problems
    if failed:
        raise RuntimeError(f"watching failed: {'; '.join(failed)}")
    return Outcome(run.findings, losses, math.nan if evaluate is None else _accuracy(model, evaluate[1]))


def _accuracy(model: nn.Module, pair: Pair) -> float:
    training = model.training
    model.eval()
    with torch.no_grad():
        right = (model(pair[0]).argmax(-1) == pair[1]).double().mean().item()
    model.train(training)
    return right
