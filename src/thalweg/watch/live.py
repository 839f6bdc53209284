"""A watched run: what happens at every step, between the training loop and the recorder."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.probe._wrapped import bare
from thalweg.watch.budget import Budget
from thalweg.watch.evaluations import Evaluations
from thalweg.watch.hooks import Listener, with_closure
from thalweg.watch.labels import NamedLabels
from thalweg.watch.loss_function import checked
from thalweg.watch.moment import Moment, Raw, number
from thalweg.watch.readings import Finding
from thalweg.watch.recorder import Recorder
from thalweg.watch.senses import Senses
from thalweg.watch.stray import Stray
from thalweg.watch.watched import Watched, watched_optimizers

__all__ = ["Run"]

# The part of the budget that judging the losses may take.
JUDGING = 0.2
# Every so many seconds the store is told what watching has cost so far.
TELLING = 2.0
# In its first steps a run shows what it offers: look at each of them.
SETTLING = 3


class Run:
    """One watched training run; made by :func:`watch`.

    Attributes:
        budget: what watching has cost, see :class:`thalweg.watch.Budget`.
        disabled: sensors and sinks that were switched off, and why.
        id: of the run in its store, at ``store_path``; 0 without one.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Sequence[Watched],
        recorder: Recorder,
        *,
        loss_fn: Callable[..., Tensor] | None,
        evaluate: tuple[Any, Any] | None,
        budget: float,
        name: str,
        start: int,
        looks: bool,
    ):
        self.watched, self.recorder, self.name = optimizers, recorder, name
        first = optimizers[0]
        inner = None if model is None else bare(model)
        loss_fn = None if loss_fn is None else checked(loss_fn)
        self.moment = Moment(start, first.named, first.optimizer, inner, loss_fn, evaluate=evaluate)
        self.disabled, self.id = recorder.disabled, recorder.run_id
        self.store_path = None if recorder.store is None else recorder.store.path
        self.budget = Budget(budget)
        self._labels = NamedLabels()
        self._mark = 0.0
        self._stepped: set[int] = set()
        # Seconds that the budget has not been told of yet, and the step of the last time it was.
        self._trained = self._own = self._charged = 0.0
        # Steps seen, which are fewer than those counted where the run was resumed or some were skipped.
        self._seen = self._settled = self._wake = 0
        self._looks, self._awake = looks, False
        self._told = time.perf_counter()
        self._listener = Listener(model, self._hear)
        self._evaluations = Evaluations(self.moment, optimizers, self._listener, self._spent)
        self._senses = Senses(model, optimizers, recorder, self.budget, self._evaluations.paused, looks)
        self.sensors = self._senses.sensors
        self._stray = Stray(recorder)
        self._hooks = [self._hooked(index) for index in range(len(optimizers))]
        if model is not None and looks:
            self._hooks.append(model.register_forward_hook(self._listener, with_kwargs=True))
        self._open = True
        # A script that ends without closing its run has still lost nothing.
        atexit.register(self._at_exit)

    def log(self, *, loss: Any = None, batch: Any = None, step: int | None = None, **numbers: Any) -> None:
        """Tell the run what it cannot see: the loss, the batch, and any other number by name.

        ``loss`` and ``numbers`` may be tensors on any device; nothing is waited for. A number called
        ``test_accuracy`` becomes the reading ``test accuracy``, which the rules know.

        Args:
            batch: what ``loss_fn(model, batch)`` takes; a pair is taken for (inputs, targets), and of a
                mapping ``labels``, ``targets`` or ``y`` for the targets.
            step: that the numbers belong to; by default the coming one.

        Raises:
            ValueError: for a loss or number that is not one number; nothing is logged then.
        """
        start = time.perf_counter()
        self._listener.take()
        raws = [Raw(key.replace("_", " "), number(key, value)) for key, value in numbers.items()]
        if loss is not None:
            raws.append(Raw("loss", number("loss", loss)))
            if self._looks:
                self._stray.loss(self.moment.step)
        if batch is not None:
            self.moment.batch = batch
            if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Tensor):
                self.moment.targets = batch[1]
            if isinstance(batch, Mapping):
                self._labels.note(batch)
        if raws and self._looks:
            self.recorder.put(self.moment.step + 1 if step is None else step, raws)
        self._spent(start)

    @property
    def step(self) -> int:
        """Optimizer steps so far, with those before the start of a resumed run.

        Of several optimizers that take turns: a step ends when one that has stepped in it steps again.
        """
        return self.moment.step

    def skip_to(self, step: int) -> None:
        """Count up to ``step``: a trainer also counts steps that a GradScaler skipped, which are not seen."""
        self.moment.step = self.recorder.step = max(self.moment.step, step)

    def follow(self, optimizer: torch.optim.Optimizer, name: str = "") -> None:
        """Watch ``optimizer`` from here on, in the place of one that the loop no longer steps.

        Steps are counted on, rules judge the new one by its own limits, and its first steps as first steps.

        Args:
            name: of several optimizers, which one it replaces: the key or class that findings call it by.

        Raises:
            ValueError: the run is closed, no optimizer is called ``name``, or as :func:`watch` does for an
                optimizer; the old one is watched on then.
        """
        if not self._open:
            raise ValueError("run must be open to follow another optimizer, got one that is closed")
        titles = [one.title for one in self.watched]
        if len(titles) > 1 and name not in titles:
            raise ValueError(f"name must be one of {titles}, got {name!r}")
        index = titles.index(name) if len(titles) > 1 else 0
        (new,) = watched_optimizers(self._listener.model, optimizer)
        self._hooks[index].remove()
        one = self.watched[index]
        one.optimizer, one.named, one.groups = new.optimizer, new.named, new.groups
        self._hooks[index] = self._hooked(index)
        self._senses.forget(index)
        self.recorder.restart(one.label, {**one.about(), "since": self.moment.step})

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far, in order."""
        if self._open:
            self.recorder.flush()
        return list(self.recorder.findings)

    def left_out(self) -> dict[str, str]:
        """Sensors that did not run as often as they wanted, or not at all, and why."""
        self._settle()
        return self._senses.left_out()

    def close(self, outcome: str = "finished") -> None:
        """Detach and store everything; closing again does nothing."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self._at_exit)
        for hook in self._hooks:
            hook.remove()
        self._listener.stop()
        self._settle()
        self.recorder.close(outcome, watching=self.budget.spent, left_out=self.left_out())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        left_well = kind is None or (isinstance(error, SystemExit) and error.code in (None, 0))
        self.close("finished" if left_well or kind is None else kind.__name__)

    def _at_exit(self) -> None:
        # An interactive session goes on after an error, which then says nothing about the run.
        error = None if hasattr(sys, "ps1") else getattr(sys, "last_type", None)
        self.close("left open" if error is None else error.__name__)

    def _hear(self, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        start = time.perf_counter()
        moment = self.moment
        moment.inputs = (args, kwargs)
        found = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
        moment.output = None
        if isinstance(found, Tensor) and not hasattr(found, "device_mesh"):
            moment.output = found.detach()
        # A loss function need not take what the model takes: it is given what was logged, or nothing.
        if moment.loss_fn is None:
            moment.batch = args or kwargs
        self._labels.note(kwargs)
        self._spent(start)

    def _hooked(self, index: int) -> RemovableHandle:
        # Nothing of ours is for the compiler of somebody who compiles the step.
        before = torch.compiler.disable(self._before)
        return self.watched[index].optimizer.register_step_pre_hook(partial(before, index))

    def _before(
        self, index: int, optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        changed = with_closure(args, kwargs, partial(self._look, index))
        if changed is None:
            self._look(index)
        return changed

    def _look(self, index: int) -> None:
        """Gradients are there, weights not yet moved: take the readings that are due, if any can be."""
        start = time.perf_counter()
        self._listener.take()
        moment = self.moment
        begins = index in self._stepped or not self._stepped
        if begins:
            self._stepped = set()
            self._seen += 1
            self._stray.step()
            moment.step += 1
            self.recorder.step = moment.step
            self._awake = moment.step >= self._wake
        self._stepped.add(index)
        if self._mark:
            self._trained += start - self._mark
        raws: list[Raw] = []
        paid = 0.0
        if self._awake:
            if begins:
                self._settle()
            if moment.targets is None:
                moment.targets = self._labels.beside(moment.model, moment.output)
            paid = self._senses.read(index, moment, raws)
            settled = self._seen > SETTLING
            self._wake = self.budget.wake(moment.step) if settled else moment.step + 1
        if raws:
            one = self.watched[index]
            unless = one.overflowed
            # The scaler's tensor, which the next step may write into.
            unless = None if unless is None else unless.clone()
            self.recorder.put(moment.step, raws, one.label, unless)
        if len(self._stepped) == len(self.watched):
            moment.output = moment.targets = None
            self._labels.forget()
        self._mark = time.perf_counter()
        self._own += self._mark - start - paid

    def _settle(self) -> None:
        """Enter what has been earned and spent since the last look."""
        steps = self._seen - self._settled
        if self._trained:
            self.budget.earn(self._trained, max(steps, 1))
        busy = self.recorder.busy
        self.recorder.thin = self.budget.every(self.recorder.price, JUDGING)
        self.budget.overhead(self._own + busy - self._charged)
        self._trained, self._own, self._charged, self._settled = 0.0, 0.0, busy, self._seen
        if (now := time.perf_counter()) - self._told > TELLING:
            self._told = now
            self.recorder.about = {"watching": self.budget.spent, "left_out": self._senses.left_out()}

    def _spent(self, start: float) -> None:
        """Time in our own calls outside the step is not the user's training time."""
        now = time.perf_counter()
        if self._mark:
            self._mark += now - start
        self._own += now - start
