"""What is done around each step of a watched optimizer: count, read what is due, keep account of the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thalweg.probe._logits import logits_of
from thalweg.watch.batch_form import form_of, logits_in
from thalweg.watch.budget import Budget
from thalweg.watch.clock import Clock
from thalweg.watch.evaluations import Evaluations
from thalweg.watch.half_precision import region_around
from thalweg.watch.hooks import Listener, with_closure
from thalweg.watch.labels import NamedLabels
from thalweg.watch.moment import Moment, Raw
from thalweg.watch.recorder import Recorder
from thalweg.watch.senses import Senses
from thalweg.watch.watched import Watched
from thalweg.watch.whole_batches import seen_whole

__all__ = ["Looks"]

# The part of the budget that judging the losses may take.
JUDGING = 0.1
# Every so many seconds the store is told what watching has cost so far.
TELLING = 2.0
# In its first steps a run shows what it offers: look at each of them.
SETTLING = 3


class Looks:
    """The hooks of a run, on its model and its optimizers.

    Args:
        active: whether this process reads anything; others count steps only.

    Attributes:
        clock: seconds that the budget has not been told of yet.
        listener: hears the model's passes.
        senses: the sensors.
        labels: targets that came by name.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizers: Sequence[Watched],
        recorder: Recorder,
        moment: Moment,
        budget: Budget,
        active: bool,
    ):
        self.watched, self.recorder, self.moment, self.budget = optimizers, recorder, moment, budget
        self.clock, self.labels = Clock(), NamedLabels()
        self.listener = Listener(model, self._hear)
        self._evaluations = Evaluations(moment, optimizers, self.listener, self._spent)
        self.senses = Senses(model, optimizers, recorder, budget, self._evaluations.paused, active)
        # A bit for each optimizer that has stepped in this step.
        self._stepped, self._all = 0, 2 ** len(optimizers) - 1
        # Steps seen, which are fewer than those counted where the run was resumed or some were skipped.
        self._seen = self._settled = self._wake = 0
        self._awake = False
        self._told = time.perf_counter()
        self._logits: str | None = None
        self._hooks = [self._hooked(index) for index in range(len(optimizers))]
        if model is not None and active:
            self._hooks.append(model.register_forward_hook(self.listener, with_kwargs=True))

    def left_out(self) -> dict[str, str]:
        """Sensors that did not run as often as they wanted, or not at all, and why."""
        self.settle(self.clock.last)
        return self.senses.left_out()

    def follow(self, index: int, new: Watched) -> None:
        """Look at ``new`` in the place of the optimizer of this number."""
        self._hooks[index].remove()
        one = self.watched[index]
        one.optimizer, one.named, one.held = new.optimizer, new.named, new.held
        self._hooks[index] = self._hooked(index)
        self.senses.forget(index)

    def stop(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self.listener.stop()

    def settle(self, until: float) -> None:
        """Enter what has been earned and spent up to a look since the last such one."""
        self.clock.settle(self.budget, until, self._seen - self._settled, self.recorder.busy)
        self._settled = self._seen
        judges = self.recorder.judges
        judges.thin = self.budget.every(judges.price, JUDGING)
        if until - self._told > TELLING:
            self._told = until
            self.recorder.about = {"watching": self.budget.spent, "left_out": self.senses.left_out()}

    def _hear(self, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        start = time.perf_counter()
        moment = self.moment
        moment.inputs = (args, kwargs)
        found = logits_of(output)
        moment.output = None
        if self._logits is None:
            self._logits = logits_in(output)
        if isinstance(found, Tensor) and not hasattr(found, "device_mesh"):
            moment.output, moment.region = found.detach(), region_around(found)
        # A loss function need not take what the model takes: it is given what was logged, or nothing.
        if moment.loss_fn is None:
            moment.batch = args or kwargs
        self.labels.note(kwargs)
        self._spent(start)

    def _hooked(self, index: int) -> RemovableHandle:
        def look(args: tuple, kwargs: dict[str, Any]) -> Any:
            changed = None
            if kwargs or len(args) > 1:
                changed = with_closure(args, kwargs, partial(self._look, index), self.listener)
            if changed is None:
                self._look(index)
            return changed

        # Nothing of ours is for the compiler of somebody who compiles the step; others need not pay for that.
        apart: Callable[..., Any] = torch.compiler.disable(look)

        def before(_: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
            return (apart if torch.compiler.is_compiling() else look)(args, kwargs)

        return self.watched[index].optimizer.register_step_pre_hook(before)

    def _look(self, index: int) -> None:
        """Gradients are there, weights not yet moved: take the readings that are due, if any can be."""
        start = time.perf_counter()
        moment, listener = self.moment, self.listener
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
                self.settle(start)
            self._read(index)
        complete = self._stepped == self._all
        if complete:
            moment.output = moment.targets = None
            if self._awake:
                self.labels.forget()
        # What no sensor can read is not listened to.
        listener.listens = moment.step + 1 >= self._wake or (self._awake and not complete)
        clock = self.clock
        clock.last = time.perf_counter()
        clock.own += clock.last - start

    def _read(self, index: int) -> None:
        """Run the sensors that are due and can be paid."""
        moment, one = self.moment, self.watched[index]
        if moment.targets is None:
            moment.targets = self.labels.beside(moment.model, moment.output)
        raws: list[Raw] = []
        paid = self.senses.read(index, moment, raws)
        self.clock.paid += paid
        self.clock.own -= paid
        given = not index and moment.loss_fn is not None and moment.batch is not None
        if given and seen_whole(moment) is None:
            moment.earlier.offer(moment.batch)
        settled = self._seen > SETTLING
        if not settled and self.recorder.form is None:
            self._form()
        self._wake = self.budget.wake(moment.step) if settled else moment.step + 1
        if raws:
            unless = one.overflowed
            # The scaler's tensor, which the next step may write into.
            unless = None if unless is None else unless.clone()
            self.recorder.put(moment.step, raws, one.label, unless)

    def _form(self) -> None:
        """See how the loop's batch becomes what the model takes, for remedies that take one."""
        moment = self.moment
        if moment.model is None or moment.inputs is None or moment.batch is None or self._logits is None:
            return
        # What the model was called with stands in for the batch where the loop logged none.
        if moment.batch is moment.inputs[0]:
            return
        late = self.labels.late(moment.model)
        with suppress(Exception):  # a monitor must not end the run for the sake of words
            self.recorder.form = form_of(
                moment.batch, moment.model, *moment.inputs, logits=self._logits, late=late
            )

    def _spent(self, start: float) -> None:
        """Time in our own calls outside the step is not the user's training time."""
        self.clock.own += time.perf_counter() - start
