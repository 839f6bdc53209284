"""The background thread: turns device tensors into numbers, asks the rules, feeds store and sinks.

The training thread only puts things on a queue. Four times a second what has gathered is judged, stored in
one transaction, so that a killed process loses less than a second, and handed to the sinks.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from thalweg.watch.batch_form import Form
from thalweg.watch.delivery import Delivery
from thalweg.watch.judging import Judges
from thalweg.watch.loss_function import LossFunctionError
from thalweg.watch.moment import Raw
from thalweg.watch.readings import Finding, Reading, labelled
from thalweg.watch.rule import Rule
from thalweg.watch.step_losses import StepLosses
from thalweg.watch.store import RunStore

__all__ = ["Recorder"]

EVERY = 0.25
# Readings that could not be stored (a full disk) are kept up to this many, and tried again ever less often.
KEPT = 20_000
SELDOM = 5.0
NONE: Mapping[str, float] = {}


class Recorder(threading.Thread):
    """Takes (step, readings) from ``put`` until ``close``.

    Args:
        rules: by label of the optimizer whose readings they judge; the first optimizer's is empty.
        titles: what findings call an optimizer of that label, where there are several.
        past: readings that a resumed run has stored already, for the rules to remember.

    Attributes:
        findings: grows meanwhile.
        step: optimizer steps so far, set by the run.
        about: what the store is to be told of the run with the next readings, set by the run now and then.
        busy: seconds of processor time that this and the sinks' threads have taken from the training so far.
        lost: readings that were given up.
        disabled: sensors and sinks that were switched off, and why.
        sinks: what takes readings to other trackers.
        judges: the rules that see what is taken.
        form: how the loop's batch becomes what the model takes, once known; remedies are fitted to it.
    """

    def __init__(
        self,
        rules: Mapping[str, Sequence[Rule]],
        store: RunStore | None,
        run: int,
        on_finding: Callable[[Finding], None] | None,
        *,
        titles: Mapping[str, str] | None = None,
        past: Callable[[], Iterable[tuple[str, Reading]]] | None = None,
        findings: Sequence[Finding] = (),
    ):
        super().__init__(name="thalweg recorder", daemon=True)
        self.store, self.run_id, self.on_finding = store, run, on_finding
        self.findings: list[Finding] = list(findings)
        self.disabled: dict[str, str] = {}
        self.about: dict[str, Any] = {}
        self.sinks: list[Delivery] = []
        self.step, self.lost, self.busy = 0, 0, 0.0
        self.form: Form | None = None
        self.problems: list[str] = []
        self.judges = Judges(rules, titles or {}, self._complain)
        self._past, self._losses = past, StepLosses()
        self._inbox: deque[Any] = deque()
        self._wake, self._ending = threading.Event(), False
        # What is to be added to ``time.perf_counter`` to give the time of day.
        self._epoch = 0.0
        self._readings: list[tuple[float, Reading]] = []
        self._unsaved: list[Finding] = []
        self._undelivered: tuple[list[tuple[float, Reading]], list[Finding]] = [], []
        self._failures, self._retry = 0, 0.0
        self.start()

    def put(self, step: int, raws: Sequence[Raw], label: str = "", unless: Tensor | None = None) -> None:
        """Hand readings of a step that has begun over, with its losses before them; wakes nobody: that costs.

        Args:
            label: of the optimizer that they are of.
            unless: on the device; if it is not 0 the readings are dropped.
        """
        self._inbox.append((time.time(), step, raws, label, unless))

    def note(self, step: int, raws: Sequence[Raw]) -> None:
        """Hand over numbers that the loop logged for a step, which may have begun or not."""
        self._inbox.append((time.time(), step, raws))

    def put_loss(self, at: float, step: int, loss: float | Tensor, named: bool = False) -> None:
        """Hand over a loss; of several for one step the mean is kept.

        Args:
            at: when, by ``time.perf_counter``, which the caller has asked already.
            named: of a step that the loop named, rather than the coming one.
        """
        self._inbox.append((at, step, loss, named))

    def report(self, finding: Finding) -> None:
        """Hand over a finding that no rule made."""
        self._inbox.append(finding)

    def restart(self, label: str, about: Mapping[str, Any]) -> None:
        """From here on the rules of this label judge another optimizer."""
        self._inbox.append(partial(self.judges.restart, label, about))

    def switch_off(self, kind: str, names: Sequence[str], error: Exception) -> str:
        """Note that sensors or a sink failed; gives the sentence that says so."""
        plain = isinstance(error, LossFunctionError)
        why = str(error) if plain else f"{type(error).__name__}: {error}"
        self.disabled |= dict.fromkeys(names, why)
        which, verb = (kind, "is") if len(names) == 1 else (f"{kind}s", "are")
        message = f"the {which} {', '.join(map(repr, names))} failed and {verb} switched off ({why})"
        self.report(Finding(f"{kind} switched off", self.step, message, {}, "info", found=self.step))
        return f"thalweg: {message}"

    def is_here(self) -> bool:
        """Whether this thread calls, or a sink's: in ``on_finding``, or where a sink is told of a finding."""
        return threading.current_thread() in (self, *self.sinks)

    def flush(self) -> None:
        """Wait until what was handed over so far has been judged and stored; not on that very thread."""
        if self.is_here():
            return
        done = threading.Event()
        self._inbox.append(done)
        self._wake.set()
        while self.is_alive() and not done.wait(0.05):
            pass

    def close(self, outcome: str, **about: Any) -> None:
        """Judge and store the rest, mark the run as ended, and stop; ``about`` is stored with it."""
        self._ending = True
        self._wake.set()
        try:
            self.join()
        finally:
            # Somebody who interrupts the waiting has ended the run all the same.
            self._end(outcome, about)
        for sink in self.sinks:
            sink.close(outcome)
        # A sink may have failed only now.
        self._clear_inbox()
        self._save(self.step, now=True)
        for sink in self.sinks:
            if sink.lost:
                warnings.warn(f"thalweg: {sink.lost} readings did not get to {sink.name}", stacklevel=3)
        if self.store is None:
            return
        self.lost += len(self._readings)
        self.store.close()
        if self.lost or self._unsaved:
            what = f"{self.lost} readings and {len(self._unsaved)} findings"
            warnings.warn(f"thalweg: {what} could not be stored: {'; '.join(self.problems)}", stacklevel=3)

    def _end(self, outcome: str, about: Mapping[str, Any]) -> None:
        try:
            if self.store is not None:
                self.store.end(self.run_id, outcome, **about)
        except sqlite3.Error as error:
            self._complain(error)

    def run(self) -> None:
        ending = False
        self._remember()
        while not ending:
            self._wake.wait(EVERY)
            self._wake.clear()
            ending = self._ending
            # Taken first: a resumed run must not go on behind readings that a killed one left in the queue.
            reached = self.step
            asked = self._clear_inbox()
            self._judge_losses(self._losses.end() if ending else self._losses.begun(reached))
            self._save(reached, now=ending or bool(asked))
            for sink in self.sinks:
                sink.put(*self._undelivered)
            self._undelivered = [], []
            self.busy = time.thread_time() + sum(sink.busy for sink in self.sinks)
            for done in asked:
                done.set()

    def _clear_inbox(self) -> list[threading.Event]:
        """Take what waits; gives the events of those who wait until it is stored."""
        waiting = [self._inbox.popleft() for _ in range(len(self._inbox))]
        self._epoch = time.time() - time.perf_counter()
        for item in waiting:
            try:
                if isinstance(item, Finding):
                    self._found(item)
                elif isinstance(item, tuple):
                    (self._take_loss if len(item) == 4 else self._take)(*item)
                elif callable(item):
                    item()
            except Exception as error:
                self._complain(error)
        return [item for item in waiting if isinstance(item, threading.Event)]

    def _remember(self) -> None:
        """Let the rules see what a resumed run has stored; what they found then is stored already."""
        try:
            for label, reading in self._past() if self._past else ():
                self.judges.see(label, reading)
        except Exception as error:
            self._complain(error, "the rules of the resumed run begin anew")

    def _take(
        self, when: float, step: int, raws: Sequence[Raw], label: str | None = None, unless: Any = None
    ) -> None:
        if label is not None:
            self._judge_losses(self._losses.begun(step))
        label = label or ""
        if unless is not None and float(unless):
            return
        for raw in raws:
            try:
                reading = raw.reading(step)
            except Exception as error:
                self._complain(error)
                continue
            self._keep(when, replace(reading, name=labelled(reading.name, label)) if label else reading)
            for finding in self.judges.see(label, reading):
                self._found(finding)

    def _take_loss(self, at: float, step: int, loss: float | Tensor, named: bool) -> None:
        self._judge_losses(self._losses.add(self._epoch + at, step, float(loss), named))

    def _judge_losses(self, losses: Iterable[tuple[float, int, float]]) -> None:
        for when, step, loss in losses:
            reading = Reading(step, "loss", loss, NONE, NONE)
            self._keep(when, reading)
            for finding in self.judges.see_loss(reading):
                self._found(finding)

    def _keep(self, when: float, reading: Reading) -> None:
        self._readings.append((when, reading))
        if self.sinks:
            self._undelivered[0].append((when, reading))

    def _found(self, finding: Finding) -> None:
        finding = finding if self.form is None else self.form.fit(finding)
        self.findings.append(finding)
        self._unsaved.append(finding)
        if self.sinks:
            self._undelivered[1].append(finding)
        if self.on_finding:
            try:
                self.on_finding(finding)
            except BaseException as error:
                # SystemExit would end this thread and nothing else: not the training, but its record.
                if not isinstance(error, Exception):
                    error = RuntimeError(f"{type(error).__name__} on this thread cannot end the training")
                self._complain(error, "on_finding failed")

    def _save(self, step: int, now: bool) -> None:
        if self.store is not None:
            if not now and time.monotonic() < self._retry:
                return
            try:
                about, self.about = self.about, {}
                self.store.write(self.run_id, step, self._readings, self._unsaved, **about)
            except sqlite3.Error as error:
                self._complain(error)
                self._failures += 1
                self._retry = time.monotonic() + min(EVERY * 2**self._failures, SELDOM)
                excess = max(0, len(self._readings) - KEPT)
                self.lost += excess
                del self._readings[:excess]
                return
            except Exception as error:
                self._complain(error)
                self.lost += len(self._readings)
        self._failures, self._retry = 0, 0.0
        self._readings.clear()
        self._unsaved.clear()

    def _complain(self, error: Exception, what: str = "the recorder had a problem and goes on") -> None:
        """Say once what went wrong; a monitor must not end the run that it watches."""
        if str(error) in self.problems:
            return
        self.problems.append(str(error))
        try:
            warnings.warn(f"thalweg: {what}: {error}", stacklevel=2)
        except Warning:
            # The user turned warnings into errors; here one would end this thread and nothing else.
            return
