"""How a run went: losses and accuracies on both parts of the data, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Curve", "Row", "accuracy", "cross_entropy"]


@dataclass(frozen=True)
class Row:
    """Where a run stands after ``step`` updates: mean losses, and accuracies in [0, 1]."""

    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float


@dataclass(frozen=True)
class Curve:
    """A finished run: one entry a row in every column.

    Attributes:
        steps: updates done when the row was taken; begins with 0.
        train_loss, test_loss: mean loss over the part.
        train_accuracy, test_accuracy: share of correct answers over the part, in [0, 1].
        diverged: whether the training loss stopped being finite, which ends the run; the last row carries
            that loss.
    """

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]
    train_accuracy: tuple[float, ...]
    test_loss: tuple[float, ...]
    test_accuracy: tuple[float, ...]
    diverged: bool = False

    @property
    def rows(self) -> list[Row]:
        columns = (self.steps, self.train_loss, self.train_accuracy, self.test_loss, self.test_accuracy)
        return [Row(*values) for values in zip(*columns, strict=True)]

    @property
    def last(self) -> Row:
        return self.rows[-1]

    def first_step(self, condition: Callable[[Row], bool]) -> int | None:
        """The step of the first row for which ``condition`` holds, or None if there is none."""
        return next((row.step for row in self.rows if condition(row)), None)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of logits [..., classes] against int64 targets [...]."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Share of ``targets`` [...] on the model's largest logit [..., classes], in evaluation mode."""
    with _evaluating(model):
        return _share_correct(model(inputs), targets)


def measured_row(
    step: int,
    model: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    train_loss: float | None,
) -> Row:
    """Measure both parts in evaluation mode; ``train_loss``, if given, stands for the measured one."""
    measured = []
    with _evaluating(model):
        for inputs, targets in (train, test):
            outputs = model(inputs)
            measured.append((loss_fn(outputs, targets).item(), _share_correct(outputs, targets)))
    (loss, train_accuracy), (test_loss, test_accuracy) = measured
    return Row(step, loss if train_loss is None else train_loss, train_accuracy, test_loss, test_accuracy)


def _share_correct(outputs: Tensor, targets: Tensor) -> float:
    return (outputs.argmax(dim=-1) == targets).double().mean().item()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is back in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
