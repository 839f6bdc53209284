"""What a sensor may look at: the run just before an optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.discover import modules
from thalweg.watch.earlier_batches import Earlier
from thalweg.watch.readings import Reading

__all__ = [
    "Moment",
    "Raw",
    "Sensor",
    "all_sensors",
    "counted",
    "examples",
    "few",
    "how_to_give",
    "kept",
    "number",
    "sensor",
]


@dataclass
class Moment:
    """The run just before a step: gradients are there, weights not yet moved.

    Attributes:
        step: which step comes next, from 1.
        named: parameters of the optimizer by name.
        optimizer: the one that is about to step; of several, the first unless a sensor asks for each.
        model: without the wrappers of DDP and ``torch.compile``.
        batch: what the loop logged, or what the model was called with.
        inputs: (positional, keyword) arguments of the last forward pass in training mode.
        output, targets: of the last forward pass, detached, if they could be told.
        region: device and type of the autocast region of that pass, if it ran in one.
        evaluate: (train, test), each a pair of inputs and targets.
        scale: what gradients are still multiplied by (fused optimizers undo a GradScaler's scale within the
            step): whatever reads ``.grad`` divides by it. None where they are what they should be.
        evaluations: passes without gradients that were heard since a sensor last took them from here.
        memory: what a sensor keeps from one reading to the next; under ``silent`` why it can say nothing of
            this run, in words for :meth:`thalweg.watch.Run.left_out`.
        earlier: some examples of batches of the run so far, without this one.
        ways: how a trainer is brought to give what a sensor needs, where that is not ``run.log``.
    """

    step: int
    named: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    model: nn.Module | None = None
    loss_fn: Callable[..., Tensor] | None = None
    batch: Any = None
    inputs: tuple[tuple, dict[str, Any]] | None = None
    output: Tensor | None = None
    targets: Tensor | None = None
    region: tuple[str, torch.dtype] | None = None
    evaluate: tuple[Any, Any] | None = None
    scale: float | Tensor | None = None
    evaluations: list[Any] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)
    earlier: Earlier = field(default_factory=Earlier)
    ways: Mapping[str, str] = field(default_factory=dict)

    def silent(self, why: str | None) -> list[Raw]:
        """No readings, and why: of a sensor that ran and can say nothing. None: there is something again."""
        self.memory["silent"] = why
        return []

    def over(self, why: str | None = None) -> list[Raw]:
        """No readings now nor later of this model, and why if that is worth saying: others get its time."""
        self.memory["over"] = True
        return self.silent(why)

    def available(self) -> set[str]:
        """The optional fields that are there."""
        optional = ("model", "loss_fn", "batch", "inputs", "output", "targets", "evaluate")
        return {name for name in optional if getattr(self, name) is not None}


@dataclass(frozen=True)
class Raw:
    """A reading still on the device: ``value`` and ``layers`` become numbers later, on another thread."""

    name: str
    value: float | Tensor
    layers: tuple[str, ...] = ()
    values: Tensor | None = None
    extra: Mapping[str, float | Tensor] = field(default_factory=dict)

    def reading(self, step: int) -> Reading:
        """The same as numbers, for which the device is waited for."""
        values = [] if self.values is None else self.values.detach().tolist()
        layers = dict(zip(self.layers, values, strict=True))
        extra = {key: float(value) for key, value in self.extra.items()}
        return Reading(step, self.name, float(self.value), layers, extra)


@dataclass(frozen=True)
class Sensor:
    """A function from :class:`Moment` to readings, and what it wants of the budget.

    Attributes:
        share: its part of the time budget, relative to the other sensors'.
        every: least number of steps between two readings.
        passes: what one reading costs, in forward passes of the training batch, until it has been measured;
            or a function of the moment that says so.
        needs: fields of the moment that must not be None.
        each: read for each optimizer of a run, of its own parameters, rather than for the first.
        runs: it may run the model or the loss, so that what that changes has to be put back.
        early: cheap enough to be read in a run's first steps before it has been earned.
    """

    name: str
    read: Callable[[Moment], list[Raw]]
    share: float
    every: int
    passes: float | Callable[[Moment], float]
    needs: tuple[str, ...]
    each: bool = False
    runs: bool = False
    early: bool = False

    def estimate(self, at: Moment) -> float:
        """What one reading costs, in forward passes, as far as it can be told."""
        return self.passes(at) if callable(self.passes) else self.passes

    def missing(self, available: Collection[str]) -> list[str]:
        """The fields of the moment that it needs and that are not there."""
        return [need for need in self.needs if need not in available]


def sensor(
    name: str,
    *,
    share: float = 1.0,
    every: int = 1,
    passes: float | Callable[[Moment], float] = 1.0,
    needs: tuple[str, ...] = (),
    each: bool = False,
    runs: bool | None = None,
    early: bool = False,
) -> Callable[[Callable[[Moment], list[Raw]]], Sensor]:
    """Make a sensor of a function; a file in ``watch/sensors`` that defines one is all it takes.

    Unless it says otherwise, what needs the model or the loss function runs them.
    """
    if runs is None:
        runs = bool({"model", "loss_fn"} & set(needs))
    return lambda read: Sensor(name, read, share, every, passes, needs, each, runs, early)


def all_sensors() -> list[Sensor]:
    """Every sensor in ``watch/sensors``."""
    found = [value for module in modules("thalweg.watch.sensors") for value in vars(module).values()]
    return [one for one in found if isinstance(one, Sensor)]


def few(batch: Any, count: int) -> Any:
    """The first ``count`` examples of every tensor in a batch that has as many as its first one.

    Others, such as a number, one row for all, or a mask over pairs of positions, stay whole.
    """
    sizes: list[int] = []
    _map(batch, lambda tensor: sizes.append(len(tensor) if tensor.ndim else 1))
    whole = next((size for size in sizes if size > 1), 1)
    return _map(batch, lambda tensor: tensor[:count] if tensor.ndim and len(tensor) == whole else tensor)


def kept(batch: Any) -> Any:
    """A copy of every tensor in a batch: the loop may write its next batch into the same memory."""
    return _map(batch, lambda tensor: tensor.detach().clone())


def examples(batch: Any) -> int:
    """The length of the first tensor in a batch, at least 1."""
    found: list[int] = []
    _map(batch, lambda tensor: found.append(len(tensor) if tensor.ndim else 1))
    return max(found[0], 1) if found else 1


def counted(batch: Any) -> int:
    """The examples in a batch; of whole numbers, such as tokens, each one counts."""
    found: list[int] = []

    def note(tensor: Tensor) -> None:
        whole = not (tensor.is_floating_point() or tensor.is_complex())
        found.append(tensor.numel() if whole or not tensor.ndim else len(tensor))

    _map(batch, note)
    return max(found[0], 1) if found else 1


def _map(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {key: _map(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map(value, change) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_map(value, change) for value in batch)
    return batch


def how_to_give(need: str) -> str:
    """In words, how a loop provides what a sensor needs."""
    ways = {
        "loss_fn": "watch(..., loss_fn=...)",
        "evaluate": "watch(..., evaluate=(train, test))",
        "batch": "run.log(batch=...)",
        "targets": "run.log(batch=(inputs, targets))",
        "inputs": "the model to be called in training mode",
        "output": "the model's output to be logits",
        "model": "the model",
    }
    return ways[need]


def number(name: str, value: Any) -> float | Tensor:
    """One number, or a copy of a tensor that holds one: the loop may go on writing into it."""
    if isinstance(value, Tensor):
        if value.is_cpu:
            # Nothing has to be waited for, and a float is the cheaper copy; what else it is, is said below.
            try:
                plain = value.item()
            except RuntimeError:
                plain = None
            if type(plain) is float:
                return plain
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
        if value.is_complex() or value.is_meta:
            kind = f"a {value.dtype} tensor on {value.device}"
            raise ValueError(f"{name} must be a real number, got {kind}")
        return value.detach().clone()
    try:
        # An array of one element is no number to numpy.
        return float(value.item() if getattr(value, "size", None) == 1 else value)
    except (TypeError, ValueError, OverflowError, AttributeError):
        raise ValueError(f"{name} must be a number or a tensor with one element, got {value!r}") from None
