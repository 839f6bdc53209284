"""A watched run: what happens at every step, between the training loop and the recorder."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.probe._wrapped import bare
from thalweg.watch._endings import outcome_of_block, outcome_of_script, stays_with_this_process
from thalweg.watch.arguments import check_step
from thalweg.watch.budget import Budget
from thalweg.watch.clock import Clock
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
        # A bit for each optimizer that has stepped in this step.
        self._stepped, self._all = 0, 2 ** len(optimizers) - 1
        self._clock = Clock()
        # Steps seen, which are fewer than those counted where the run was resumed or some were skipped.
        self._seen = self._settled = self._wake = 0
        self._looks, self._awake, self._logged = looks, False, -1
        self._told = time.perf_counter()
        self._listener = Listener(model, self._hear)
        self._evaluations = Evaluations(self.moment, optimizers, self._listener, self._spent)
        self._senses = Senses(model, optimizers, recorder, self.budget, self._evaluations.paused, looks)
        self.sensors = self._senses.sensors
        self._stray = Stray(recorder, start)
        self._hooks = [self._hooked(index) for index in range(len(optimizers))]
        if model is not None and looks:
            self._hooks.append(model.register_forward_hook(self._listener, with_kwargs=True))
        self._open, self._outcome = True, ""  # the outcome of a close that waits for the training thread
        # A script that ends without closing its run has still lost nothing.
        atexit.register(self._at_exit)
        stays_with_this_process(self)

    def log(self, *, loss: Any = None, batch: Any = None, step: int | None = None, **numbers: Any) -> None:
        """Tell the run what it cannot see: the loss, the batch, and any other number by name.

        ``loss`` and ``numbers`` may be tensors on any device; nothing is waited for. A number called
        ``test_accuracy`` becomes the reading ``test accuracy``, which the rules know.

        Args:
            batch: what ``loss_fn(model, batch)`` takes; a pair is taken for (inputs, targets), and of a
                mapping ``labels``, ``targets`` or ``y`` for the targets.
            step: that the numbers belong to; by default the coming one.

        Of a closure that is called more than once in a step, only the loss of its first call counts.

        Raises:
            ValueError: for a loss or number that is not one number, or no step; nothing is logged then.
        """
        if self._outcome:
            self.close()
        start = time.perf_counter()
        listener, moment = self._listener, self.moment
        if listener.last is not None:
            listener.take()
        raws = [Raw(key.replace("_", " "), number(key, value)) for key, value in numbers.items()]
        value = None if loss is None else number("loss", loss)
        to = moment.step + (not listener.again) if step is None else check_step(step)
        if batch is not None:
            moment.batch = batch
            if listener.listens and (targets := self._labels.of_batch(batch)) is not None:
                # For sensors that read before the coming step.
                moment.targets = targets
        if self._looks and self._open:
            if raws:
                self.recorder.put(to, raws)
            # A closure's later losses are not those of the weights that the step begins with.
            if value is not None and not listener.again:
                self.recorder.put_loss(to, value)
                if moment.step == self._logged:
                    self._stray.loss(moment.step)
                self._logged = moment.step
        self._clock.own += time.perf_counter() - start

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
        one.optimizer, one.named, one.held = new.optimizer, new.named, new.held
        self._hooks[index] = self._hooked(index)
        self._senses.forget(index)
        self.recorder.restart(one.label, {**one.about(), "since": self.moment.step})

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far, in order; in ``on_finding`` with the one at hand as the last."""
        if self._open:
            self.recorder.flush()
        return list(self.recorder.findings)

    def left_out(self) -> dict[str, str]:
        """Sensors that did not run as often as they wanted, or not at all, and why."""
        self._settle(self._clock.last)
        return self._senses.left_out()

    def close(self, outcome: str = "finished") -> None:
        """Detach and store everything; closing again does nothing. In ``on_finding``: at the next ``log``."""
        if not self._open:
            return
        if self.recorder.is_here():
            # That thread cannot wait for itself, and hooks are not taken off while another may be in them.
            self._outcome = self._outcome or outcome
            return
        outcome = self._outcome or outcome
        self.detach()
        self._settle(self._clock.last)
        self.recorder.close(outcome, watching=self.budget.spent, left_out=self.left_out())

    def detach(self) -> None:
        """See no more of the training; a run that is to be stored as ended is closed instead."""
        self._open = False
        atexit.unregister(self._at_exit)
        for hook in self._hooks:
            hook.remove()
        self._listener.stop()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close(outcome_of_block(kind, error))

    def _at_exit(self) -> None:
        self.close(outcome_of_script())

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
        def before(_: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            changed = None
            if kwargs or len(args) > 1:
                changed = with_closure(args, kwargs, partial(self._look, index), self._listener)
            if changed is None:
                self._look(index)
            return changed

        # Nothing of ours is for the compiler of somebody who compiles the step.
        return self.watched[index].optimizer.register_step_pre_hook(torch.compiler.disable(before))

    def _look(self, index: int) -> None:
        """Gradients are there, weights not yet moved: take the readings that are due, if any can be."""
        start = time.perf_counter()
        moment, listener = self.moment, self._listener
        if listener.last is not None:
            listener.take()
        bit = 1 << index
        begins = bool(self._stepped & bit) or not self._stepped
        if begins:
            self._stepped = 0
            self._seen += 1
            moment.step += 1
            self.recorder.step = moment.step
            self._awake = moment.step >= self._wake
        self._stepped |= bit
        if self._awake:
            if begins:
                self._settle(start)
            self._read(index)
        complete = self._stepped == self._all
        if complete:
            moment.output = moment.targets = None
            if self._awake:
                self._labels.forget()
        # What no sensor can read is not listened to.
        listener.listens = moment.step + 1 >= self._wake or (self._awake and not complete)
        clock = self._clock
        clock.last = time.perf_counter()
        clock.own += clock.last - start

    def _read(self, index: int) -> None:
        """Run the sensors that are due and can be paid."""
        moment, one = self.moment, self.watched[index]
        if moment.targets is None:
            moment.targets = self._labels.beside(moment.model, moment.output)
        raws: list[Raw] = []
        paid = self._senses.read(index, moment, raws)
        self._clock.paid += paid
        self._clock.own -= paid
        settled = self._seen > SETTLING
        self._wake = self.budget.wake(moment.step) if settled else moment.step + 1
        if raws:
            unless = one.overflowed
            # The scaler's tensor, which the next step may write into.
            unless = None if unless is None else unless.clone()
            self.recorder.put(moment.step, raws, one.label, unless)

    def _settle(self, until: float) -> None:
        """Enter what has been earned and spent up to a look since the last such one."""
        self._clock.settle(self.budget, until, self._seen - self._settled, self.recorder.busy)
        self._settled = self._seen
        judges = self.recorder.judges
        judges.thin = self.budget.every(judges.price, JUDGING)
        if until - self._told > TELLING:
            self._told = until
            self.recorder.about = {"watching": self.budget.spent, "left_out": self._senses.left_out()}

    def _spent(self, start: float) -> None:
        """Time in our own calls outside the step is not the user's training time."""
        self._clock.own += time.perf_counter() - start
