"""One plain training loop for studies, tests and the demo: whole batch, minibatches, or text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_count
from thalweg.tasks._seeds import generator
from thalweg.tasks.curve import Curve, Row, cross_entropy, measured_row
from thalweg.tasks.split import Split
from thalweg.tasks.text import CharText

__all__ = ["full_batch", "minibatch", "next_character"]

Pair = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]
OnStep = Callable[[int, Tensor, Pair], Any]


def full_batch(
    model: nn.Module,
    split: Split,
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss_fn: Loss = cross_entropy,
    evaluate_every: int = 100,
    stop: Callable[[Row], bool] | None = None,
    on_step: OnStep | None = None,
    schedule: Any = None,
    closure: bool = False,
) -> Curve:
    """Train on the whole training part at every step, in place.

    Args:
        model: maps inputs to logits [n, classes].
        split: the task, on the model's device.
        optimizer: holds the model's parameters.
        steps: updates to make.
        loss_fn: mean loss of (outputs, targets).
        evaluate_every: a row is taken before training, every so many updates, and at the end.
        stop: sees each new row and ends the run by returning True.
        on_step: called as ``on_step(step, loss, (inputs, targets))`` once a step, after the (first) backward
            pass and before the update, so it may read or edit gradients; ``step`` counts updates done. What
            belongs after the update goes into ``optimizer.register_step_post_hook``.
        schedule: a torch learning-rate scheduler, stepped once an update.
        closure: hand the optimizer a closure that recomputes the gradient, for methods that need it more than
            once.

    Returns:
        The :class:`Curve`. A loss that is not finite ends the run with ``diverged=True``; nothing is raised.

    Raises:
        ValueError: for a bad argument.
    """
    return _run(
        model,
        repeat(split.train),
        split.train,
        split.test,
        optimizer,
        steps,
        loss_fn,
        evaluate_every,
        stop,
        on_step,
        schedule,
        closure,
    )


def minibatch(
    model: nn.Module,
    split: Split,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    loss_fn: Loss = cross_entropy,
    evaluate_every: int = 100,
    stop: Callable[[Row], bool] | None = None,
    on_step: OnStep | None = None,
    schedule: Any = None,
    closure: bool = False,
) -> Curve:
    """Train on minibatches of reshuffled training examples, in place.

    Every pass takes the examples in a new order given by ``seed``; the last examples of a pass, when they do
    not fill a batch, are left out of that pass. The other arguments are those of :func:`full_batch`.

    Raises:
        ValueError: for a bad argument, and if ``batch_size`` exceeds the number of training examples.
    """
    check_count("batch_size", batch_size)
    examples = len(split.train[1])
    if batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} training examples, got {batch_size}")
    source = generator(seed)

    def batches() -> Iterator[Pair]:
        inputs, targets = split.train
        while True:
            order = torch.randperm(examples, generator=source).to(targets.device)
            for start in range(0, examples - batch_size + 1, batch_size):
                chosen = order[start : start + batch_size]
                yield inputs[chosen], targets[chosen]

    return _run(
        model,
        batches(),
        split.train,
        split.test,
        optimizer,
        steps,
        loss_fn,
        evaluate_every,
        stop,
        on_step,
        schedule,
        closure,
    )


def next_character(
    model: nn.Module,
    text: CharText,
    optimizer: torch.optim.Optimizer,
    steps: int,
    batch_size: int = 32,
    context: int = 64,
    seed: int = 0,
    loss_fn: Loss = cross_entropy,
    evaluate_every: int = 100,
    stop: Callable[[Row], bool] | None = None,
    on_step: OnStep | None = None,
    schedule: Any = None,
    closure: bool = False,
) -> Curve:
    """Train a language model [b, t] -> [b, t, vocabulary] on random windows of ``text``, in place.

    Rows are measured on 64 windows of each part, drawn once from a seed of their own, so that runs with
    different ``seed`` are judged on the same windows. Losses are nats a character. The other arguments are
    those of :func:`full_batch`.

    Raises:
        ValueError: for a bad argument, and if a part is too short for ``context``.
    """
    check_count("batch_size", batch_size)
    fixed, source = generator(0), generator(seed)
    judged = {part: text.batch(part, 64, context, fixed) for part in ("train", "test")}
    batches = iter(lambda: text.batch("train", batch_size, context, source), None)
    return _run(
        model,
        batches,
        judged["train"],
        judged["test"],
        optimizer,
        steps,
        loss_fn,
        evaluate_every,
        stop,
        on_step,
        schedule,
        closure,
    )


def _run(
    model: nn.Module,
    batches: Iterator[Pair],
    train: Pair,
    test: Pair,
    optimizer: torch.optim.Optimizer,
    steps: int,
    loss_fn: Loss,
    evaluate_every: int,
    stop: Callable[[Row], bool] | None,
    on_step: OnStep | None,
    schedule: Any,
    closure: bool,
) -> Curve:
    check_count("steps", steps, low=0)
    check_count("evaluate_every", evaluate_every)
    rows: list[Row] = []

    def ended(step: int, loss: float | None = None) -> bool:
        rows.append(measured_row(step, model, train, test, loss_fn, loss))
        return not math.isfinite(rows[-1].train_loss) or (stop is not None and stop(rows[-1]))

    done = ended(0)
    model.train()
    for step in range(steps):
        if done:
            break
        gradient = _Gradient(step, model, next(batches), optimizer, loss_fn, on_step)
        if closure:
            optimizer.step(gradient)  # type: ignore[arg-type]
        else:
            gradient()
        if not math.isfinite(gradient.loss):
            if rows[-1].step == step:
                rows.pop()
            ended(step, gradient.loss)
            break
        if not closure:
            optimizer.step()
        if schedule is not None:
            schedule.step()
        if (step + 1) % evaluate_every == 0 or step + 1 == steps:
            done = ended(step + 1)

    columns = {field.name: tuple(getattr(row, field.name) for row in rows) for field in fields(Row)}
    return Curve(steps=columns.pop("step"), **columns, diverged=not math.isfinite(rows[-1].train_loss))


class _Gradient:
    """Called without arguments, fills ``.grad`` from one batch: the closure of one step."""

    loss: float

    def __init__(
        self,
        step: int,
        model: nn.Module,
        batch: Pair,
        optimizer: torch.optim.Optimizer,
        loss_fn: Loss,
        on_step: OnStep | None,
    ) -> None:
        self.step, self.model, self.batch, self.optimizer = step, model, batch, optimizer
        self.loss_fn, self.on_step = loss_fn, on_step

    @torch.enable_grad()
    def __call__(self) -> Tensor:
        inputs, targets = self.batch
        self.optimizer.zero_grad()
        loss = self.loss_fn(self.model(inputs), targets)
        loss.backward()
        if not hasattr(self, "loss"):
            self.loss = loss.item()
            if self.on_step is not None:
                self.on_step(self.step, loss.detach(), self.batch)
        return loss
