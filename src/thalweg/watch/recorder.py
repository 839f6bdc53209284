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

import torch

from thalweg.watch.moment import Raw
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.rule import Rule
from thalweg.watch.store import RunStore

__all__ = ["Recorder"]

EVERY = 0.25
# Readings that could not be stored (a full disk) are kept and tried again, up to this many.
KEPT = 100_000


class Recorder(threading.Thread):
    """Takes (step, readings) from ``put`` until ``close``; ``findings`` grows meanwhile."""

    def __init__(
        self,
        rules: Sequence[Rule],
        store: RunStore | None,
        run: int,
        on_finding: Callable[[Finding], None] | None,
    ):
        super().__init__(name="thalweg recorder", daemon=True)
        self.rules, self.store, self.run_id, self.on_finding = rules, store, run, on_finding
        self.findings: list[Finding] = []
        self.lost = 0
        self.problem = ""
        self._inbox: deque[Any] = deque()
        self._wake = threading.Event()
        self._ending = False
        self._readings: list[tuple[float, Reading]] = []
        self._unsaved: list[Finding] = []
        self._step = 0
        self._done = threading.Event()
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

    def close(self, outcome: str) -> None:
        """Judge and store the rest, mark the run as ended, and stop."""
        self.flush()
        self._ending = True
        self._wake.set()
        self.join()
        if self.store is None:
            return
        try:
            self.store.end(self.run_id, outcome)
        except sqlite3.Error as error:
            self._complain(error)
        if self._readings or self._unsaved:
            self.lost += len(self._readings)
            warnings.warn(f"thalweg: {self.lost} readings could not be stored: {self.problem}", stacklevel=3)
        self.store.close()

    def run(self) -> None:
        while not self._ending:
            self._wake.wait(EVERY)
            self._wake.clear()
            waiting = [self._inbox.popleft() for _ in range(len(self._inbox))]
            for item in waiting:
                try:
                    if isinstance(item, Finding):
                        self._found(item)
                    elif isinstance(item, tuple):
                        self._take(*item)
                except Exception as error:
                    self._complain(error)
            self._save()
            for item in waiting:
                if isinstance(item, threading.Event):
                    item.set()

    def _take(self, when: float, step: int, raws: Sequence[Raw]) -> None:
        self._step = max(self._step, step)
        for raw in raws:
            values = [] if raw.values is None else raw.values.detach().tolist()
            layers = dict(zip(raw.layers, values, strict=True))
            extra = {key: float(value) for key, value in raw.extra.items()}
            reading = Reading(step, raw.name, float(raw.value), layers, extra)
            self._readings.append((when, reading))
            for rule in self.rules:
                if reading.name in rule.reads:
                    for finding in rule.see(reading):
                        self._found(finding)

    def _found(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._unsaved.append(finding)
        if self.on_finding:
            self.on_finding(finding)

    def _save(self) -> None:
        if self.store is None:
            self._readings.clear()
            self._unsaved.clear()
            return
        try:
            self.store.write(self.run_id, self._step, self._readings, self._unsaved)
        except sqlite3.Error as error:
            self._complain(error)
            if len(self._readings) > KEPT:
                self.lost += len(self._readings) - KEPT
                del self._readings[:-KEPT]
            return
        self._readings.clear()
        self._unsaved.clear()

    def _complain(self, error: Exception) -> None:
        """Say once what went wrong; a monitor must not end the run that it watches."""
        if str(error) != self.problem:
            self.problem = str(error)
            warnings.warn(f"thalweg: the recorder had a problem and goes on: {error}", stacklevel=2)


def detached(value: Any) -> Any:
    """A tensor without its graph; anything else as it is."""
    return value.detach() if isinstance(value, torch.Tensor) else value
