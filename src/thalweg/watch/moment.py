"""What a sensor may look at: the run just before an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Moment", "Raw", "Sensor", "few", "sensor"]


@dataclass
class Moment:
    """The run just before a step: gradients are there, weights not yet moved.

    Attributes:
        step: which step comes next, from 1.
        named: parameters of the optimizer by name.
        batch: what the loop logged, or what the model was called with.
        output, targets: of the last forward pass, detached, if they could be told.
        evaluate: (train, test), each a pair of inputs and targets.
        memory: what a sensor keeps from one reading to the next.
    """

    step: int
    named: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    model: nn.Module | None = None
    loss_fn: Callable[..., Tensor] | None = None
    batch: Any = None
    output: Tensor | None = None
    targets: Tensor | None = None
    evaluate: tuple[Any, Any] | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def available(self) -> set[str]:
        """The optional fields that are there."""
        optional = ("model", "loss_fn", "batch", "output", "targets", "evaluate")
        return {name for name in optional if getattr(self, name) is not None}


@dataclass(frozen=True)
class Raw:
    """A reading still on the device: ``value`` and ``layers`` become numbers later, on another thread."""

    name: str
    value: float | Tensor
    layers: tuple[str, ...] = ()
    values: Tensor | None = None
    extra: Mapping[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Sensor:
    """A function from :class:`Moment` to readings, and what it wants of the budget.

    Attributes:
        share: its part of the time budget, relative to the other sensors'.
        every: least number of steps between two readings.
        passes: what one reading costs, in forward passes, until it has been measured.
        needs: fields of the moment that must not be None.
    """

    name: str
    read: Callable[[Moment], list[Raw]]
    share: float
    every: int
    passes: float
    needs: tuple[str, ...]

    def missing(self, available: Collection[str]) -> list[str]:
        """The fields of the moment that it needs and that are not there."""
        return [need for need in self.needs if need not in available]


def sensor(
    name: str, *, share: float = 1.0, every: int = 1, passes: float = 1.0, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[Moment], list[Raw]]], Sensor]:
    """Make a sensor of a function; a file in ``watch/sensors`` that defines one is all it takes."""
    return lambda read: Sensor(name, read, share, every, passes, needs)


def few(batch: Any, count: int) -> Any:
    """The first ``count`` examples of every tensor in a batch."""
    if isinstance(batch, Tensor):
        return batch[:count] if batch.ndim else batch
    if isinstance(batch, Mapping):
        return {key: few(value, count) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(few(value, count) for value in batch)
    return batch
