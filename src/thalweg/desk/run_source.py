"""The run store as the desk sees it: opened for one answer, and what can be wrong with it said in words."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, HTTPException, Request

from thalweg.desk.problems import Problems

if TYPE_CHECKING:
    from thalweg.watch import RunInfo, RunStore

__all__ = ["RunSource", "run_of", "source_of"]

SOURCE, ROWS = "run store", "rows of the run store"  # names on the health page
WAIT = 1.0  # seconds for somebody who has locked the whole file
AGAIN = 60.0  # seconds until a problem that stays is reported again
FIRST = "no run has been stored yet: train with thalweg.watch(..., store=PATH)"


class RunSource:
    """Opens the store anew for every answer, so that one that is replaced, removed or mended is noticed.

    Args:
        path: of the store, which need not exist yet; None for none.
    """

    def __init__(self, path: Path | None, problems: Problems) -> None:
        self.path, self.problems = path, problems
        self._lock = threading.Lock()
        self._seen = False
        self._said: dict[tuple[str, str], float] = {}

    @property
    def there(self) -> bool:
        """Whether there is a store, or was one: that it is gone is a trouble, not an empty state."""
        return self.path is not None and (self._seen or (self.path.is_file() and not self._blank()))

    def _blank(self) -> bool:
        """Whether a run is only about to make the store."""
        from thalweg.watch._store_file import EmptyStore
        from thalweg.watch.store import RunStore

        assert self.path is not None
        try:
            RunStore(self.path, wait=WAIT).close()
        except EmptyStore:
            return True
        except ValueError:
            pass
        return False

    @property
    def file(self) -> tuple[int, int] | None:
        """Which file is there now: another one after it was replaced, None where there is none."""
        try:
            found = self.path.stat() if self.path else None
        except OSError:
            return None
        return found and (found.st_dev, found.st_ino)

    @property
    def stamp(self) -> tuple[object, ...]:
        """Differs once the store has been written, replaced or removed; found without opening it."""
        found: list[object] = []
        for name in (self.path, f"{self.path}-wal"):
            try:
                one = os.stat(name) if name else None
            except OSError:
                one = None
            found.append(one and (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns))
        return tuple(found)

    @contextmanager
    def open(self) -> Iterator[RunStore]:
        """The store, for one answer.

        Raises:
            HTTPException: 404 where there is none yet, 503 where it cannot be read; the latter is reported.
        """
        from thalweg.watch.store import RunStore

        if not self.there or self.path is None:
            raise HTTPException(404, FIRST)
        try:
            if self.file is None:
                raise ValueError(f"the run store {self.path} is gone, where runs were read before")
            with RunStore(self.path, wait=WAIT) as store:
                self._seen = True
                yield store
        except (sqlite3.Error, ValueError, TypeError, OSError) as error:
            known = isinstance(error, ValueError) and str(self.path) in str(error)
            why = str(error) if known else f"the run store {self.path} cannot be read: {error}"
            self._report(SOURCE, why)
            raise HTTPException(503, why, {"Retry-After": "5"}) from None
        self._well()

    def damaged(self, why: str) -> None:
        """Put a row that cannot be read on the health page; the rest of the store is shown."""
        self._report(ROWS, why)

    def _report(self, source: str, why: str) -> None:
        """Once a minute as long as it lasts: a page that is looked at asks far more often."""
        now = time.monotonic()
        with self._lock:
            if now - self._said.get((source, why), -AGAIN) < AGAIN:
                return
            self._said[source, why] = now
        self.problems.report(source, why)

    def _well(self) -> None:
        """A whole answer: what was wrong with the file is over."""
        with self._lock:
            over = [key for key in self._said if key[0] == SOURCE]
            for key in over:
                del self._said[key]
        if over:
            self.problems.solved(SOURCE)


def source_of(place: Request | FastAPI) -> RunSource:
    """The run store of a desk."""
    return (place.app if isinstance(place, Request) else place).state.runs


def run_of(store: RunStore, run: int, source: RunSource) -> RunInfo:
    """A run by its id.

    Raises:
        HTTPException: 404, there is none.
    """
    # SQLite counts no further than this.
    found = store.run(run) if abs(run) < 2**63 else None
    if found is None:
        raise HTTPException(404, f"no run has the id {run}")
    if "unreadable" in found.about:
        source.damaged(found.about["unreadable"])
    return found
