"""The background thread: turns device tensors into numbers, asks the rules, writes the store.

The training thread only puts things on a queue. Four times a second what has gathered is judged and stored in
one transaction, so a killed process loses less than a second.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from thalweg.watch.moment import Raw
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.rule import Rule
from thalweg.watch.store import RunStore

__all__ = ["Recorder"]

EVERY = 0.25
# Readings that could not be stored (a full disk) are kept up to this many, and tried again ever less often.
KEPT = 20_000
SELDOM = 5.0


class Recorder(threading.Thread):
    """Takes (step, readings) from ``put`` until ``close``.

    Attributes:
        findings: grows meanwhile.
        step: optimizer steps so far, set by the run.
        busy: seconds of processor time that this thread has taken from the training so far.
        lost: readings that were given up.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        store: RunStore | None,
        run: int,
        on_finding: Callable[[Finding], None] | None,
    ):
        super().__init__(name="thalweg recorder", daemon=True)
        self.store, self.run_id, self.on_finding = store, run, on_finding
        self.findings: list[Finding] = []
        self.step = self.lost = 0
        self.busy = 0.0
        self.problems: list[str] = []
        self._rules: dict[str, list[Rule]] = {}
        for rule in rules:
            for name in rule.reads:
                self._rules.setdefault(name, []).append(rule)
        self._inbox: deque[Any] = deque()
        self._wake = threading.Event()
        self._ending = False
        self._readings: list[tuple[float, Reading]] = []
        self._unsaved: list[Finding] = []
        self._failures = 0
        self._retry = 0.0
        self.start()

    def put(self, step: int, raws: Sequence[Raw]) -> None:
        """Hand readings over; returns at once and wakes nobody, which would cost the training thread more."""
        self._inbox.append((time.time(), step, raws))

    def report(self, finding: Finding) -> None:
        """Hand over a finding that no rule made."""
        self._inbox.append(finding)

    def flush(self) -> None:
        """Wait until everything handed over so far has been judged and stored."""
        done = threading.Event()
        self._inbox.append(done)
        self._wake.set()
        while self.is_alive() and not done.wait(0.05):
            pass

    def close(self, outcome: str, **about: Any) -> None:
        """Judge and store the rest, mark the run as ended, and stop; ``about`` is stored with it."""
        self.flush()
        self._ending = True
        self._wake.set()
        self.join()
        if self.store is None:
            return
        try:
            self.store.end(self.run_id, outcome, **about)
        except sqlite3.Error as error:
            self._complain(error)
        self.lost += len(self._readings)
        self.store.close()
        if self.lost or self._unsaved:
            what = f"{self.lost} readings and {len(self._unsaved)} findings"
            warnings.warn(f"thalweg: {what} could not be stored: {'; '.join(self.problems)}", stacklevel=3)

    def run(self) -> None:
        ending = False
        while not ending:
            self._wake.wait(EVERY)
            self._wake.clear()
            ending = self._ending
            waiting = [self._inbox.popleft() for _ in range(len(self._inbox))]
            for item in waiting:
                if isinstance(item, Finding):
                    self._found(item)
                elif isinstance(item, tuple):
                    self._take(*item)
            asked = [item for item in waiting if isinstance(item, threading.Event)]
            self._save(now=ending or bool(asked))
            self.busy = time.thread_time()
            for done in asked:
                done.set()

    def _take(self, when: float, step: int, raws: Sequence[Raw]) -> None:
        for raw in raws:
            try:
                reading = _reading(step, raw)
            except Exception as error:
                self._complain(error)
                continue
            self._readings.append((when, reading))
            for rule in list(self._rules.get(reading.name, ())):
                try:
                    found = list(rule.see(reading))
                except Exception as error:
                    self._complain(error, f"the rule {rule.name!r} failed and is switched off")
                    for readers in self._rules.values():
                        readers[:] = [one for one in readers if one is not rule]
                    continue
                for finding in found:
                    self._found(finding)

    def _found(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._unsaved.append(finding)
        if self.on_finding:
            try:
                self.on_finding(finding)
            except Exception as error:
                self._complain(error, "on_finding failed")

    def _save(self, now: bool) -> None:
        if self.store is not None:
            if not now and time.monotonic() < self._retry:
                return
            try:
                self.store.write(self.run_id, self.step, self._readings, self._unsaved)
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


def _reading(step: int, raw: Raw) -> Reading:
    values = [] if raw.values is None else raw.values.detach().tolist()
    layers = dict(zip(raw.layers, values, strict=True))
    extra = {key: float(value) for key, value in raw.extra.items()}
    return Reading(step, raw.name, float(raw.value), layers, extra)
