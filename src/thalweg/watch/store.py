"""The run store: one SQLite file (WAL) that a run writes and anybody may read meanwhile.

A series (run, name) fixes the order of its layers once; each reading then holds its layers as one packed
array, so that a hundred layers cost one row. Beside the readings the extremes of longer stretches are kept,
for curves of few points.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from thalweg._core.checks import check_count
from thalweg.watch import _store_coarse, _store_curve
from thalweg.watch._store_file import identity, in_words, open_file, version
from thalweg.watch._store_rows import as_reading, as_row
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.run_info import FIELDS, RunInfo, as_run

__all__ = ["RunStore"]


class RunStore:
    """A store, opened to read, or with ``write=True`` to write, which makes the file if need be.

    A store of an earlier thalweg can be read as it is; opened to write it is brought up to date.

    Args:
        wait: seconds that are waited for somebody who has locked the whole file.

    Raises:
        ValueError: if the file is not a run store, was made by a newer thalweg, cannot be read or, with
            ``write``, cannot be written.
    """

    def __init__(self, path: str | Path, *, write: bool = False, wait: float = 5.0):
        self.path = Path(path)
        self.series: dict[tuple[int, str, tuple[str, ...]], int] = {}
        self._turn = threading.RLock()
        self.db = open_file(self.path, write, wait)
        # A script may go to another folder meanwhile.
        self._place = self.path.absolute()
        self._file = identity(self._place)

    def close(self) -> None:
        """Let go of the file; closing again does nothing."""
        self.db.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def moment(self, kind: str = "deferred") -> Iterator[None]:
        """What is read within is of one moment, what is written is stored whole or not at all.

        Threads that share this store take turns; within a moment another is part of it.
        """
        with self._turn:
            if self.db.in_transaction:
                yield
                return
            self.db.execute(f"begin {kind}")
            try:
                yield
                self.db.execute("commit")
            except BaseException:
                if self.db.in_transaction:
                    self.db.execute("rollback")
                raise

    # Writing.

    def begin(self, name: str, about: dict[str, Any]) -> int:
        """Start a run and give its id.

        Raises:
            ValueError: nothing can be written, such as on a full disk.
        """
        now = time.time()
        row = (name, now, now, json.dumps(about))
        insert = "insert into runs (name, started, seen, about) values (?, ?, ?, ?)"
        with in_words(self.path, "written"), self.moment("immediate"):
            run = self.db.execute(insert, row).lastrowid
        assert run is not None
        return run

    def resume(self, run: int, step: int, **about: Any) -> None:
        """Go on with a run behind ``step``: what an earlier attempt stored behind it makes way.

        Raises:
            ValueError: nothing can be written, such as on a full disk.
        """
        with in_words(self.path, "written"), self.moment("immediate"):
            mine = "series in (select id from series where run = ?)"
            self.db.execute(f"delete from readings where step > ? and {mine}", (step, run))
            ids = [one for (one,) in self.db.execute("select id from series where run = ?", (run,))]
            _store_coarse.cut(self.db, ids, step)
            told = "coalesce(case when json_valid(finding) then json_extract(finding, '$.found') end, step)"
            self.db.execute(f"delete from findings where {told} > ? and run = ?", (step, run))
            known = self._about(run)
            known |= {**about, "resumed": [*known.get("resumed", ()), step]}
            row = (time.time(), step, json.dumps(known), run)
            state = "ended = null, outcome = null, seen = ?, steps = ?, about = ?"
            self.db.execute(f"update runs set {state} where id = ?", row)

    def write(
        self,
        run: int,
        step: int,
        readings: Iterable[tuple[float, Reading]],
        findings: Iterable[Finding],
        **about: Any,
    ) -> None:
        """Add timed readings and findings in one transaction: all of them are stored, or none.

        ``about`` joins what is known of the run.

        Raises:
            ValueError: a step is below 0 or from 2**53 on.
            sqlite3.Error: nothing can be stored now; such as on a full disk, or if the file has been deleted.
        """
        if (found := identity(self._place)) != self._file:
            if found is None:
                # A file that was moved left behind what only the log holds; another's log is not touched.
                with suppress(sqlite3.Error):
                    self.db.execute("pragma wal_checkpoint(passive)")
            # SQLite would go on writing into what nobody can open any more.
            raise sqlite3.OperationalError(f"{str(self.path)!r} was deleted or moved during the run")
        now = time.time()
        with self.moment("immediate"):
            series = dict(self.series)
            rows = [as_row(self._series(series, run, one), when, one) for when, one in readings]
            self.db.executemany("insert into readings values (?, ?, ?, ?, ?, ?)", rows)
            _store_coarse.add(self.db, ((row[0], row[1], row[3]) for row in rows))
            for f in findings:
                row = (run, f.step, now, json.dumps(f.as_dict()))
                self.db.execute("insert into findings (run, step, time, finding) values (?, ?, ?, ?)", row)
            self.db.execute("update runs set seen = ?, steps = ? where id = ?", (now, step, run))
            if about:
                self._join(run, about)
        self.series = series

    def end(self, run: int, outcome: str, **about: Any) -> None:
        """Mark a run as ended: ``finished`` or the name of an exception; ``about`` joins what is known."""
        with self.moment("immediate"):
            self._join(run, about)
            self.db.execute(
                "update runs set ended = ?, outcome = ? where id = ?", (time.time(), outcome, run)
            )

    def _join(self, run: int, about: Mapping[str, Any]) -> None:
        known = json.dumps({**self._about(run), **about})
        self.db.execute("update runs set about = ? where id = ?", (known, run))

    def _about(self, run: int) -> dict[str, Any]:
        """What is known of a run; what somebody has damaged is not, and makes way."""
        (text,) = self.db.execute("select about from runs where id = ?", (run,)).fetchone()
        try:
            known = json.loads(text)
        except (ValueError, TypeError):
            return {}
        return known if isinstance(known, dict) else {}

    def _series(self, series: dict, run: int, reading: Reading) -> int:
        key = (run, reading.name, tuple(reading.layers))
        if key not in series:
            row = (run, reading.name, json.dumps(list(reading.layers)))
            self.db.execute("insert or ignore into series (run, name, layers) values (?, ?, ?)", row)
            query = "select id from series where run = ? and name = ? and layers = ?"
            (series[key],) = self.db.execute(query, row).fetchone()
        return series[key]

    # Reading.

    def runs(self) -> list[RunInfo]:
        """Every run, oldest first."""
        return list(self.newest())[::-1]

    def newest(self, where: str = "1", *values: Any) -> Iterator[RunInfo]:
        """Runs, the newest first, read as they are asked for; ``where`` is SQL over the table of runs."""
        query = f"select {', '.join(FIELDS)} from runs where {where} order by id desc"
        return map(as_run, self.db.execute(query, values))

    def run(self, run: int) -> RunInfo | None:
        """The run of this id, if there is one."""
        return next(self.newest("id = ?", run), None)

    def names(self, run: int) -> list[str]:
        """What was measured in a run."""
        query = "select distinct name from series where run = ? order by name"
        return [name for (name,) in self.db.execute(query, (run,))]

    def readings(self, run: int, name: str, after: int = 0) -> list[Reading]:
        """The readings of one name behind step ``after``, in order."""
        query = """select r.step, r.value, s.layers, r.layers, r.extra
            from readings r join series s on s.id = r.series
            where s.run = ? and s.name = ? and r.step > ? order by r.step, r.rowid"""
        return [as_reading(name, *row) for row in self.db.execute(query, (run, name, after))]

    def overview(
        self, run: int, name: str, points: int = 600, *, low: int = 0, high: int = _store_curve.LAST
    ) -> list[Reading]:
        """A curve of at most ``points`` readings, whose spikes are those of the whole, in order of steps.

        Of every stretch of the run the least and the greatest value are there, and so are the first and the
        last reading; if there are no more than ``points``, all are. Values that are not finite are left out,
        and so are layers and extra numbers. How long it takes depends on ``points``, not on the run's length.

        Args:
            low, high: first and last step of the window that is looked at; by default the whole run.

        Raises:
            ValueError: ``points`` is below 8.
        """
        check_count("points", points, 8)
        if not (series := self._series_of(run, name)):
            return []
        with self.moment():
            pairs = _store_curve.extremes(self.db, series, points, version(self.db) >= 2, low, high)
        return [Reading(step, name, value) for step, value in pairs]

    def samples(self, run: int, name: str, edges: Sequence[float], most: int = 32) -> list[list[float]]:
        """Finite values behind each of the rising ``edges``, steps, up to and with the next.

        All of a stretch if there are few; else about ``most``, from its four quarters alike, so that their
        median is that of the stretch, which that of :meth:`overview` is not.
        """
        with self.moment():
            return _store_curve.samples(self.db, self._series_of(run, name), edges, most)

    def gaps(
        self, run: int, name: str, points: int = 600, *, low: int = 0, high: int = _store_curve.LAST
    ) -> list[int]:
        """Steps at which a reading was not finite: one of each of at most ``points`` stretches that have any.

        None of a store that was last written before gaps were indexed.
        """
        return _store_curve.gaps(self.db, self._series_of(run, name), points, low, high)

    def _series_of(self, run: int, name: str) -> list[int]:
        found = self.db.execute("select id from series where run = ? and name = ?", (run, name))
        return [one for (one,) in found]

    def findings(
        self, run: int, after: int = 0, *, most: int = -1, damaged: Callable[[str], None] | None = None
    ) -> list[Finding]:
        """The findings of a run, in order, without the first ``after``.

        Args:
            most: how many; all if it is negative.
            damaged: told of rows that cannot be read, for each of which a finding stands that says so.

        Raises:
            ValueError: a row cannot be read and ``damaged`` is not given.
        """
        query = "select id, finding from findings where run = ? order by id limit ? offset ?"
        found = []
        for row, text in self.db.execute(query, (run, most, after)):
            try:
                found.append(Finding.from_dict(json.loads(text)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                why = f"row {row} of the findings of run {run} cannot be read: {error!r}"
                if damaged is None:
                    raise ValueError(why) from None
                damaged(why)
                found.append(Finding("unreadable finding", 0, why, {}, "info"))
        return found
