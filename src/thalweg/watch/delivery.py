"""The thread that takes readings to one sink, so that a slow tracker delays nobody."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from thalweg.watch.readings import Finding, Reading
from thalweg.watch.sink import Row, Sink

__all__ = ["Delivery"]

# What a tracker has not taken yet is kept up to this many readings.
KEPT = 50_000
PATIENCE = 30.0


class Delivery(threading.Thread):
    """Carries what the recorder hands over to ``sink``, until it fails or is closed.

    Attributes:
        name: of the sink.
        busy: seconds of processor time that this thread has taken from the training so far.
        lost: readings that were given up because the sink took others too slowly.
    """

    def __init__(self, name: str, sink: Sink, failed: Callable[[str, Exception], None]):
        super().__init__(name=name, daemon=True)
        self.sink, self.failed = sink, failed
        self.lost = 0
        self.busy = 0.0
        self.alive = True
        self._inbox: deque[Any] = deque(maxlen=KEPT)
        # What is taken while it is counted would be counted as lost, or as not taken.
        self._counting = threading.Lock()
        self._wake = threading.Event()
        self._outcome: str | None = None
        self._carried = 0
        self.start()

    def put(self, readings: Sequence[tuple[float, Reading]], findings: Sequence[Finding]) -> None:
        """Hand over; returns at once."""
        if not self.alive:
            return
        with self._counting:
            self.lost += max(0, len(self._inbox) + len(readings) - KEPT)
            self._inbox.extend(readings)
            self._inbox.extend(findings)
        self._wake.set()

    def close(self, outcome: str) -> None:
        """Deliver the rest and end the tracker's run; a tracker that hangs is left after half a minute."""
        self._outcome = outcome
        self._wake.set()
        self.join(PATIENCE)
        if self.is_alive():
            self.alive = False
            with self._counting:
                missing = self._carried + sum(isinstance(item, tuple) for item in self._inbox)
            why = f"{missing} readings not taken {PATIENCE:g} s after the end of the run"
            self.failed(self.name, TimeoutError(why))

    def run(self) -> None:
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                ending = self._outcome
                with self._counting:
                    waiting = [self._inbox.popleft() for _ in range(len(self._inbox))]
                    self._carried = sum(isinstance(item, tuple) for item in waiting)
                self._deliver(waiting)
                self._carried = 0
                self.busy = time.thread_time()
                if ending is not None:
                    self.sink.end(ending)
                    return
        except Exception as error:
            self.alive = False
            self.failed(self.name, error)

    def _deliver(self, waiting: list[Any]) -> None:
        timed = [item for item in waiting if isinstance(item, tuple)]
        rows = []
        for step, group in groupby(timed, key=lambda item: item[1].step):
            together = list(group)
            numbers: dict[str, float] = {}
            for _, reading in together:
                numbers |= self.sink.numbers(reading)
            rows.append(Row(step, together[0][0], numbers))
        if rows:
            self.sink.write(rows)
        for item in waiting:
            if isinstance(item, Finding):
                self.sink.tell(item)
