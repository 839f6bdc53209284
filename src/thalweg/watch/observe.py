"""Attach to a training loop: ``with thalweg.watch(model, opt) as run``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_not_negative
from thalweg._core.discover import modules
from thalweg.watch.budget import Budget
from thalweg.watch.moment import Moment, Raw, Sensor
from thalweg.watch.readings import Finding
from thalweg.watch.recorder import Recorder, detached
from thalweg.watch.rule import all_rules
from thalweg.watch.store import RunStore

__all__ = ["ProbeDisabled", "Run", "watch"]

DEFAULT_STORE = Path("runs") / "thalweg.sqlite"


class ProbeDisabled(UserWarning):
    """A sensor failed and was switched off; training goes on."""


class Run:
    """One watched training run; made by :func:`watch`.

    Attributes:
        budget: what watching has cost, see :class:`thalweg.watch.Budget`.
        disabled: sensors that were switched off, and why.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        named: Mapping[str, nn.Parameter],
        *,
        loss_fn: Callable[..., Tensor] | None,
        evaluate: tuple[Any, Any] | None,
        budget: float,
        store: RunStore | None,
        name: str,
        on_finding: Callable[[Finding], None] | None,
    ):
        self.moment = Moment(0, named, optimizer, model, loss_fn, evaluate=evaluate)
        self.name = name
        self.disabled: dict[str, str] = {}
        self.budget = Budget(budget)
        self.sensors = {one.name: one for one in _all_sensors()}
        for one in self.sensors.values():
            self.budget.add(one.name, share=one.share, every=one.every, passes=one.passes)
        self._memories: dict[str, dict[str, Any]] = {one: {} for one in self.sensors}
        self._mark = 0.0
        self._available: set[str] = set()
        about = {"optimizer": type(optimizer).__name__, "lr": float(optimizer.param_groups[0]["lr"])}
        run = 0
        if store is not None:
            sizes = {key: p.numel() for key, p in named.items()}
            model_name = None if model is None else type(model).__name__
            run = store.begin(name, {**about, "model": model_name, "parameters": sum(sizes.values())})
        self.recorder = Recorder(all_rules(about), store, run, on_finding)
        self.store_path = None if store is None else store.path
        self._hooks = [optimizer.register_step_pre_hook(self._before)]
        if model is not None:
            self._hooks.append(model.register_forward_hook(self._forward, with_kwargs=True))
        self._open = True

    def log(self, *, loss: Any = None, batch: Any = None, **numbers: Any) -> None:
        """Tell the run what it cannot see: the loss, the batch, and any other number by name.

        ``loss`` and ``numbers`` may be tensors on any device; nothing is waited for. A number called
        ``test_accuracy`` becomes the reading ``test accuracy``, which the rules know.

        Args:
            batch: what ``loss_fn(model, batch)`` takes; a pair is taken for (inputs, targets).
        """
        start = time.perf_counter()
        if batch is not None:
            self.moment.batch = batch
            if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
                self.moment.targets = batch[1]
        raws = [Raw(key.replace("_", " "), detached(value)) for key, value in numbers.items()]
        if loss is not None:
            raws.append(Raw("loss", detached(loss)))
        if raws:
            self.recorder.put(self.moment.step + 1, raws)
        self._spent(start)

    @property
    def step(self) -> int:
        """Optimizer steps seen so far."""
        return self.moment.step

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far, in order."""
        if self._open:
            self.recorder.flush()
        return list(self.recorder.findings)

    def left_out(self) -> dict[str, str]:
        """Sensors that did not run as often as they wanted, or not at all, and why."""
        words = dict(self.budget.left_out())
        for name, one in self.sensors.items():
            missing = one.missing(self._available)
            if missing and self.moment.step:
                words[name] = f"never ran: needs {' and '.join(_how_to_give(need) for need in missing)}"
        return words | {name: f"switched off: {why}" for name, why in self.disabled.items()}

    def close(self, outcome: str = "finished") -> None:
        """Detach and store everything; closing again does nothing."""
        if not self._open:
            return
        self._open = False
        for hook in self._hooks:
            hook.remove()
        self.recorder.close(outcome)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("finished" if kind is None else kind.__name__)

    def _forward(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        # Evaluation between steps must not be taken for the training batch.
        if model.training and torch.is_grad_enabled():
            self._memories["dormant units"]["inputs"] = args or kwargs
            found = getattr(output, "logits", output)
            self.moment.output = detached(found) if isinstance(found, Tensor) else None
            if self.moment.batch is None or self.moment.loss_fn is None:
                self.moment.batch = args or kwargs

    def _before(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        start = time.perf_counter()
        if self._mark:
            self.budget.earn(start - self._mark)
        moment = self.moment
        moment.step += 1
        available = moment.available()
        if not available <= self._available or moment.step == 1:
            self._available |= available
            self.budget.idle({name for name, one in self.sensors.items() if one.missing(self._available)})
        raws: list[Raw] = []
        paid = 0.0
        for name in self.budget.due(moment.step):
            one = self.sensors[name]
            if one.missing(available):
                continue
            began = time.perf_counter()
            moment.memory = self._memories[name]
            try:
                raws += one.read(moment)
            except Exception as error:
                self._switch_off(name, error)
                continue
            took = time.perf_counter() - began
            self.budget.pay(name, moment.step, took)
            paid += took
        if raws:
            self.recorder.put(moment.step, raws)
        moment.output = moment.targets = None
        self._mark = time.perf_counter()
        self.budget.overhead(self._mark - start - paid)

    def _spent(self, start: float) -> None:
        """Time in our own calls outside the step is not the user's training time."""
        now = time.perf_counter()
        if self._mark:
            self._mark += now - start
        self.budget.overhead(now - start)

    def _switch_off(self, name: str, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"
        self.disabled[name] = why
        self.budget.close(name)
        message = f"the sensor {name!r} failed and is switched off ({why})"
        warnings.warn(f"thalweg: {message}", ProbeDisabled, stacklevel=3)
        self.recorder.report(Finding("sensor switched off", self.moment.step, message, {}, "info"))


def watch(
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    *,
    loss_fn: Callable[..., Tensor] | None = None,
    evaluate: tuple[Any, Any] | None = None,
    budget: float = 0.03,
    store: str | Path | None = DEFAULT_STORE,
    name: str | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> Run:
    """Watch a training run through its optimizer; works in any loop that calls ``optimizer.step()``.

    Watching changes nothing: not the gradients, the random state, the batch-norm statistics or the mode.

    Args:
        model: the network; None to see only the optimizer's gradients and weights.
        optimizer: any ``torch.optim.Optimizer``.
        loss_fn: ``loss_fn(model, batch)`` to a scalar; enables sharpness, with ``run.log(batch=...)``.
        evaluate: (train, test), each (inputs, targets); enables accuracies. Or log them yourself.
        budget: seconds of watching per second of training, at least 0; 0.03 by default.
        store: SQLite file that readings go to, made if need be; None for none.
        name: of the run; by default the model's class and the time.
        on_finding: called with each finding, on another thread.

    Raises:
        ValueError: for a model or optimizer without parameters, an optimizer of another model, a negative
            budget, or a store that is not ours or cannot be written.
    """
    check_not_negative("budget", budget)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not held:
        raise ValueError("optimizer must hold parameters, got none")
    named = _named(model, held)
    default = f"{'run' if model is None else type(model).__name__} {datetime.now():%Y-%m-%d %H:%M:%S}"
    return Run(
        model,
        optimizer,
        named,
        loss_fn=loss_fn,
        evaluate=evaluate,
        budget=budget,
        store=None if store is None else RunStore(store, write=True),
        name=name or default,
        on_finding=on_finding,
    )


def _named(model: nn.Module | None, held: list[nn.Parameter]) -> dict[str, nn.Parameter]:
    """The optimizer's parameters by their names in the model."""
    if model is None:
        return {f"parameter {index}": p for index, p in enumerate(held)}
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
    names = {id(p): name for name, p in model.named_parameters()}
    if not names:
        raise ValueError(f"model must have parameters, got {type(model).__name__} with none")
    if not any(id(p) in names for p in held):
        raise ValueError("optimizer must hold parameters of the model, got none of them")
    return {names.get(id(p), f"parameter {index}"): p for index, p in enumerate(held)}


def _all_sensors() -> list[Sensor]:
    return [
        v
        for module in modules("thalweg.watch.sensors")
        for v in vars(module).values()
        if isinstance(v, Sensor)
    ]


def _how_to_give(need: str) -> str:
    ways = {
        "loss_fn": "watch(..., loss_fn=...)",
        "evaluate": "watch(..., evaluate=(train, test))",
        "batch": "run.log(batch=...)",
        "targets": "run.log(batch=(inputs, targets))",
        "output": "the model's output to be logits",
        "model": "the model",
    }
    return ways[need]
