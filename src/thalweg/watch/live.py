"""A watched run, as its training loop sees it: what it is told, and what can be asked of it."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.probe._wrapped import bare
from thalweg.watch._endings import outcome_of_block, outcome_of_script, stays_with_this_process
from thalweg.watch.arguments import check_step
from thalweg.watch.budget import Budget
from thalweg.watch.looks import Looks
from thalweg.watch.loss_function import checked
from thalweg.watch.moment import Moment, Raw, number
from thalweg.watch.readings import Finding
from thalweg.watch.recorder import Recorder
from thalweg.watch.stray import Stray
from thalweg.watch.watched import Watched, watched_optimizers

__all__ = ["Run"]


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
        self._looks = Looks(model, optimizers, recorder, self.moment, self.budget, looks)
        self._clock, self._listener = self._looks.clock, self._looks.listener
        self.sensors = self._looks.senses.sensors
        self._stray = Stray(recorder, start)
        self._active, self._logged = looks, -1
        self._open, self._outcome = True, ""  # the outcome of a close that waits for the training thread
        # A script that ends without closing its run has still lost nothing.
        atexit.register(self._at_exit)
        stays_with_this_process(self)

    def log(self, *, loss: Any = None, batch: Any = None, step: int | None = None, **numbers: Any) -> None:
        """Tell the run what it cannot see: the loss, the batch, and any other number by name.

        ``loss`` and ``numbers`` may be tensors on any device; nothing is waited for. A number called
        ``test_accuracy`` becomes the reading ``test accuracy``, which the rules know. Losses of one step, as
        of batches whose gradients are accumulated, are one reading, their mean.

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
        raws = _raws(numbers) if numbers else ()
        value = None if loss is None else number("loss", loss)
        to = moment.step + (not listener.again) if step is None else check_step(step)
        if batch is not None:
            moment.batch = batch
            if listener.listens and (targets := self._looks.labels.of_batch(batch)) is not None:
                # For sensors that read before the coming step.
                moment.targets = targets
        if self._active:
            if raws:
                self.recorder.note(to, raws)
            # A closure's later losses are not those of the weights that the step begins with.
            if value is not None and not listener.again:
                self.recorder.put_loss(start, to, value, step is not None)
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

    def listened(self, seconds: float) -> None:
        """Count as watching what somebody has taken who listens to the training for this run."""
        self._clock.own += seconds

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
        self._looks.follow(index, new)
        one = self.watched[index]
        self.recorder.restart(one.label, {**one.about(), "since": self.moment.step})

    @property
    def findings(self) -> list[Finding]:
        """What has been found so far, in order; in ``on_finding`` with the one at hand as the last."""
        if self._open:
            self.recorder.flush()
        return list(self.recorder.findings)

    def left_out(self) -> dict[str, str]:
        """Sensors that did not run as often as they wanted, or not at all, and why."""
        return self._looks.left_out()

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
        words = self.left_out()
        self.recorder.close(outcome, watching=self.budget.spent, left_out=words)

    def detach(self) -> None:
        """See no more of the training; a run that is to be stored as ended is closed instead."""
        self._open = self._active = False
        atexit.unregister(self._at_exit)
        self._looks.stop()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.close(outcome_of_block(kind, error))

    def _at_exit(self) -> None:
        self.close(outcome_of_script())


def _raws(numbers: Mapping[str, Any]) -> list[Raw]:
    return [Raw(key.replace("_", " "), number(key, value)) for key, value in numbers.items()]
