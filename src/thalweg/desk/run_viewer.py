"""Who watches runs: a cursor, and a queue that the lookout fills and one answer empties."""

from __future__ import annotations

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thalweg.desk.run_curves import thin
from thalweg.desk.run_source import RunSource
from thalweg.desk.run_summary import epoch_of, in_order, overhead, plain_finding, state_of, unit_of

if TYPE_CHECKING:
    from thalweg.watch import Finding, RunInfo, RunStore

BEHIND = 64  # looks of whose news a viewer may leave all unread before it is dropped
POINTS = 300  # of a curve in one piece of news
# Rows of the store, and findings, after which it is less work to ask for everything anew.
FAR, MANY = 100_000, 50
# Findings that who begins is told of, the latest; the others are asked for.
LATEST = 1000


class Viewer(ABC):
    """Made in the loop that reads ``news``; everything else is for the lookout's thread.

    Attributes:
        there: false once it is dropped or done.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        # The news of one look stay together: however many they are, they do not make a viewer slow.
        self._queue: asyncio.Queue[list[dict[str, Any]] | None] = asyncio.Queue(BEHIND)
        self._unread: deque[dict[str, Any]] = deque()
        self._news: list[dict[str, Any]] = []
        self._troubled = ""
        self.there = True

    @property
    @abstractmethod
    def position(self) -> Hashable:
        """Viewers of equal position are told of the same look."""

    @abstractmethod
    def due(self, changed: bool) -> bool:
        """Whether there may be something new, given whether the store has been written."""

    @abstractmethod
    def look(self, store: RunStore, source: RunSource, viewers: Sequence[Any]) -> Any:
        """What is new for all these."""

    @abstractmethod
    def told(self, found: Any) -> None:
        """Make events of it."""

    @property
    @abstractmethod
    def id(self) -> str:
        """The cursor with which a client comes back."""

    def tell(self, event: str, data: Any) -> None:
        """Have an event sent by the next :meth:`hand_over`."""
        self._news.append({"event": event, "id": self.id, "data": json.dumps(data)})

    def hand_over(self) -> None:
        """Send all that was told."""
        if self._news:
            self._send(self._news)
            self._news = []

    def trouble(self, why: str) -> None:
        """The store cannot be read; or, if empty, it can again."""
        if why != self._troubled:
            self._troubled = why
            self.tell("trouble", {"why": why})
            self.hand_over()

    def close(self) -> None:
        """There is nothing more to tell."""
        self.hand_over()
        self.there = False
        self._send(None)

    async def news(self) -> AsyncIterator[dict[str, Any]]:
        """Events, until there are no more or this viewer was too slow."""
        while True:
            if not self._unread:
                if (some := await self._queue.get()) is None:
                    return
                self._unread.extend(some)
            yield self._unread.popleft()

    def _send(self, one: list[dict[str, Any]] | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._put, one)
        except RuntimeError:  # the loop, and with it the viewer, is gone
            self.there = False

    def _put(self, one: list[dict[str, Any]] | None) -> None:
        if self._queue.full():
            self.there = False
            while not self._queue.empty():
                self._queue.get_nowait()
            one = None
        self._queue.put_nowait(one)


@dataclass(frozen=True)
class Cursor:
    """How far a reader of a run has come; written ``findings.row.epoch``, of which the last may be missing.

    Attributes:
        findings: how many are known.
        row: of the readings; None for wherever the store is now.
        epoch: of the run, empty if any will do.
    """

    findings: int = 0
    row: int | None = None
    epoch: str = ""

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """What a client sent; what is no cursor counts as none."""
        findings, _, rest = text.partition(".")
        row, _, epoch = rest.partition(".")
        numbers = [int(one) if one.isdecimal() and len(one) < 18 else None for one in (findings, row)]
        return cls(numbers[0] or 0, numbers[1], epoch)

    def __str__(self) -> str:
        return f"{self.findings}.{'' if self.row is None else self.row}.{self.epoch}"


@dataclass(frozen=True)
class RunLook:
    """What is new in a run behind a cursor; ``row`` is the cursor's next, ``skipped`` findings are before."""

    info: RunInfo | None
    row: int
    far: bool
    names: list[dict[str, Any]]
    readings: dict[str, list[tuple[int, float]]]
    findings: list[Finding]
    skipped: int = 0


class RunViewer(Viewer):
    """Of one run: ``names``, ``readings`` of chosen ones, ``finding``, ``progress``, and ``anew``."""

    def __init__(self, run: int, names: Sequence[str], cursor: Cursor) -> None:
        super().__init__()
        self.run, self.names, self.cursor = run, tuple(names), cursor
        self._info: RunInfo | None = None
        self._said: tuple[Any, ...] = ()
        self._names: list[dict[str, Any]] = []

    @property
    def id(self) -> str:
        return str(self.cursor)

    @property
    def position(self) -> Hashable:
        return self.run, self.cursor

    def due(self, changed: bool) -> bool:
        return changed or self._info is None or state_of(self._info) != self._said[1]

    def look(self, store: RunStore, source: RunSource, viewers: Sequence[RunViewer]) -> RunLook:
        # Run, readings and findings of one moment, so that the cursor fits them all.
        with store.moment():
            return self._look(store, source, {name for one in viewers for name in one.names})

    def _look(self, store: RunStore, source: RunSource, names: set[str]) -> RunLook:
        from thalweg.watch.store_tail import finding_counts, last_row, layered_names, readings_behind

        info, row = store.run(self.run), last_row(store)
        behind = row if self.cursor.row is None else self.cursor.row
        # Who comes back to many asks for the page that lists the latest.
        new = finding_counts(store, [self.run])[self.run] - self.cursor.findings
        begins = self.cursor.row is None
        far = (new > MANY and not begins) or row - behind > FAR
        if info is None or far or self.cursor.epoch not in ("", epoch_of(info)):
            return RunLook(info, row, info is not None and far, [], {}, [])
        layered = layered_names(store, self.run)
        known = [
            {"name": name, "unit": unit_of(name), "layers": name in layered}
            for name in in_order(store.names(self.run))
        ]
        readings = readings_behind(store, self.run, behind, names)
        skipped = self.cursor.findings + max(0, new - LATEST if begins else 0)
        findings = store.findings(self.run, skipped, damaged=source.damaged)
        return RunLook(info, row, False, known, readings, findings, skipped)

    def told(self, found: RunLook) -> None:
        info = found.info
        if info is None or found.far or self.cursor.epoch not in ("", epoch_of(info)):
            self.tell("anew", {"why": "gone" if info is None else "far" if found.far else "resumed"})
            self.close()
            return
        self._info = info
        self.cursor = replace(self.cursor, row=found.row, epoch=epoch_of(info), findings=found.skipped)
        mine = {name: thin(found.readings[name], POINTS) for name in self.names if name in found.readings}
        if mine:
            self.tell("readings", mine)
        # Behind the readings, which its id counts as told.
        if found.names != self._names:
            self._names = found.names
            self.tell("names", found.names)
        for one in found.findings:
            self.cursor = replace(self.cursor, findings=self.cursor.findings + 1)
            self.tell("finding", {"number": self.cursor.findings, **plain_finding(one)})
        now = (info.steps, state_of(info), overhead(info))
        if now != self._said:
            self._said = now
            self.tell("progress", dict(zip(("steps", "state", "overhead"), now, strict=True)))
        if info.outcome is not None:
            self.close()


class ListViewer(Viewer):
    """Of the list of runs: ``run`` with a row of the page for each that is new or has changed."""

    SELDOM = 1.0  # seconds between two looks
    LATE = 2.0  # seconds ago: a mark later than that is of a clock that was ahead, or has been set back since

    def __init__(self, mark: float) -> None:
        super().__init__()
        self.mark = mark
        self._rows: dict[int, Any] = {}
        self._pending, self._last = True, 0.0

    @property
    def id(self) -> str:
        return f"{self.mark:.6f}"

    @property
    def position(self) -> Hashable:
        return "list", self.mark, not self._rows

    def due(self, changed: bool) -> bool:
        self._pending = self._pending or changed
        if time.monotonic() - self._last < self.SELDOM:
            return False
        return self._pending or any(state_of(one["run"]) != one["state"] for one in self._rows.values())

    def look(self, store: RunStore, source: RunSource, viewers: Sequence[ListViewer]) -> list[dict[str, Any]]:
        from thalweg.desk.run_rows import changed_rows

        live = {row["id"]: row for one in viewers for row in one._rows.values() if row["live"]}
        mark = min(self.mark, time.time() - self.LATE)
        return changed_rows(store, mark, live.values(), source, anew=not self._rows)

    def told(self, found: list[dict[str, Any]]) -> None:
        self._pending, self._last = False, time.monotonic()
        for row in found:
            info = row["run"]
            self.mark = max(self.mark, info.seen, info.ended or 0.0)
        for row in found:
            known = self._rows.get(row["run"].id)
            self._rows[row["run"].id] = row
            if known is None or known["html"] != row["html"]:
                self.tell("run", {key: row[key] for key in ("id", "name", "state", "kind", "steps", "html")})
