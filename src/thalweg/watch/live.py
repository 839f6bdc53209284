"""A watched run: what happens at every step, between the training loop and the recorder."""

from __future__ import annotations

import atexit
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.discover import modules
from thalweg.watch.budget import Budget
from thalweg.watch.hooks import Listener, named_parameters, with_closure
from thalweg.watch.moment import Moment, Raw, Sensor, how_to_give, number
from thalweg.watch.readings import Finding
from thalweg.watch.recorder import Recorder
from thalweg.watch.rule import all_rules
from thalweg.watch.store import RunStore

__all__ = ["ProbeDisabled", "Run"]

# In its first steps a run shows what it offers: look at each of them.
SETTLING = 3


class ProbeDisabled(UserWarning):
    """A sensor failed and was switched off; training goes on."""


class Run:
    """One watched training run; made by :func:`watch`.

    Attributes:
        budget: what watching has cost, see :class:`thalweg.watch.Budget`.
        disabled: sensors that were switched off, and why.
        id: of the run in its store, at ``store_path``; 0 without one.
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
            self.budget.add(one.name, share=one.share, every=one.every, passes=1.0)
        self._groups = len(optimizer.param_groups)
        self._memories: dict[str, dict[str, Any]] = {one: {} for one in self.sensors}
        self._mark = 0.0
        self._available: set[str] = set()
        # Seconds that the budget has not been told of yet, and the step of the last time it was.
        self._trained = self._own = self._charged = 0.0
        self._settled = self._wake = 0
        group = optimizer.param_groups[0]
        about: dict[str, Any] = {"optimizer": type(optimizer).__name__}
        # A schedule that warms up has already set lr to its first, small value.
        if (lr := group.get("initial_lr", group.get("lr"))) is not None:
            about["lr"] = float(lr)
        self.id = 0
        if store is not None:
            sizes = {key: p.numel() for key, p in named.items()}
            model_name = None if model is None else type(model).__name__
            self.id = store.begin(name, {**about, "model": model_name, "parameters": sum(sizes.values())})
        self.recorder = Recorder(all_rules(about), store, self.id, on_finding)
        self.store_path = None if store is None else store.path
        self._hooks = [optimizer.register_step_pre_hook(self._before)]
        if model is not None:
            self._hooks.append(model.register_forward_hook(Listener(model, self._hear), with_kwargs=True))
        self._open = True
        # A script that ends without closing its run has still lost nothing.
        atexit.register(self.close, "left open")

    def log(self, *, loss: Any = None, batch: Any = None, **numbers: Any) -> None:
        """Tell the run what it cannot see: the loss, the batch, and any other number by name.

        ``loss`` and ``numbers`` may be tensors on any device; nothing is waited for. A number called
        ``test_accuracy`` becomes the reading ``test accuracy``, which the rules know.

        Args:
            batch: what ``loss_fn(model, batch)`` takes; a pair is taken for (inputs, targets).

        Raises:
            ValueError: for a loss or number that is not one number; nothing is logged then.
        """
        start = time.perf_counter()
        raws = [Raw(key.replace("_", " "), number(key, value)) for key, value in numbers.items()]
        if loss is not None:
            raws.append(Raw("loss", number("loss", loss)))
        if batch is not None:
            self.moment.batch = batch
            if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
                self.moment.targets = batch[1]
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
        self._settle()
        words = dict(self.budget.left_out())
        for name, one in self.sensors.items():
            missing = one.missing(self._available)
            if missing and self.moment.step:
                words[name] = f"never ran: needs {' and '.join(how_to_give(need) for need in missing)}"
        return words | {name: f"switched off: {why}" for name, why in self.disabled.items()}

    def close(self, outcome: str = "finished") -> None:
        """Detach and store everything; closing again does nothing."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        for hook in self._hooks:
            hook.remove()
        self._settle()
        self.recorder.close(outcome, watching=self.budget.spent, left_out=self.left_out())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("finished" if kind is None else kind.__name__)

    def _hear(self, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        moment = self.moment
        # Evaluation between steps must not be taken for the training batch.
        if moment.model is None or not (moment.model.training and torch.is_grad_enabled()):
            return
        start = time.perf_counter()
        moment.inputs = (args, kwargs)
        found = getattr(output, "logits", output)
        moment.output = found.detach() if isinstance(found, Tensor) else None
        if moment.batch is None or moment.loss_fn is None:
            moment.batch = args or kwargs
        self._spent(start)

    def _before(self, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]) -> Any:
        changed = with_closure(args, kwargs, self._look)
        if changed is None:
            self._look()
        return changed

    def _look(self) -> None:
        """Gradients are there, weights not yet moved: take the readings that are due, if any can be."""
        start = time.perf_counter()
        moment = self.moment
        moment.step += 1
        self.recorder.step = moment.step
        if self._mark:
            self._trained += start - self._mark
        raws: list[Raw] = []
        paid = 0.0
        if moment.step >= self._wake:
            paid = self._read(raws)
            self._wake = self.budget.wake(moment.step) if moment.step > SETTLING else moment.step + 1
        if raws:
            self.recorder.put(moment.step, raws)
        moment.output = moment.targets = None
        self._mark = time.perf_counter()
        self._own += self._mark - start - paid

    def _read(self, raws: list[Raw]) -> float:
        """Run every sensor that is due; gives the seconds that they took."""
        self._settle()
        moment = self.moment
        available = moment.available()
        groups = moment.optimizer.param_groups
        if not available <= self._available or moment.step == 1:
            self._plan(available)
        if len(groups) != self._groups:
            held = [p for group in groups for p in group["params"]]
            moment.named, self._groups = named_parameters(moment.model, held), len(groups)
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
                # Of a run that is no longer finite nothing can be said, which is not the sensor's fault.
                if _finite(moment.named.values()):
                    self._switch_off(name, error)
                    continue
            took = time.perf_counter() - began
            self.budget.pay(name, moment.step, took)
            paid += took
        return paid

    def _settle(self) -> None:
        """Enter what has been earned and spent since the last look."""
        steps = self.moment.step - self._settled
        if self._trained:
            self.budget.earn(self._trained, max(steps, 1))
        busy = self.recorder.busy
        self.budget.overhead(self._own + busy - self._charged)
        self._trained, self._own, self._charged, self._settled = 0.0, 0.0, busy, self.moment.step

    def _plan(self, available: set[str]) -> None:
        """Something is there for the first time: share the budget out anew."""
        self._available |= available
        self.budget.idle({name for name, one in self.sensors.items() if one.missing(self._available)})
        for name, one in self.sensors.items():
            if name in self.budget.accounts and not one.missing(self._available | {"batch"}):
                try:
                    self.budget.expect(name, one.estimate(self.moment))
                except Exception as error:
                    self._switch_off(name, error)

    def _spent(self, start: float) -> None:
        """Time in our own calls outside the step is not the user's training time."""
        now = time.perf_counter()
        if self._mark:
            self._mark += now - start
        self._own += now - start

    def _switch_off(self, name: str, error: Exception) -> None:
        why = f"{type(error).__name__}: {error}"
        self.disabled[name] = why
        self.budget.close(name)
        message = f"the sensor {name!r} failed and is switched off ({why})"
        warnings.warn(f"thalweg: {message}", ProbeDisabled, stacklevel=3)
        self.recorder.report(Finding("sensor switched off", self.moment.step, message, {}, "info"))


def _finite(params: Iterable[nn.Parameter]) -> bool:
    tensors = (tensor.detach() for p in params for tensor in (p, p.grad) if tensor is not None)
    return all(bool(torch.isfinite(t.coalesce().values() if t.is_sparse else t).all()) for t in tensors)


def _all_sensors() -> list[Sensor]:
    return [
        v
        for module in modules("thalweg.watch.sensors")
        for v in vars(module).values()
        if isinstance(v, Sensor)
    ]
