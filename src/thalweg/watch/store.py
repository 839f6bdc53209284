"""The run store: one SQLite file (WAL) that a run writes and anybody may read meanwhile.

A series (run, name) fixes the order of its layers once; each reading then holds its layers as one packed
array, so that a hundred layers cost one row.
"""

from __future__ import annotations

import array
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg.watch.readings import Finding, Reading, plain

__all__ = ["RunInfo", "RunStore"]

APPLICATION = 0x7468616C  # "thal", in the header of every store of ours
SCHEMA = 1
TABLES = """
create table runs (id integer primary key, name text not null, started real not null, seen real not null,
    ended real, outcome text, steps integer not null default 0, about text not null);
create table series (id integer primary key, run integer not null references runs, name text not null,
    layers text not null, unique (run, name, layers));
create table readings (series integer not null references series, step integer not null, time real not null,
    value real, layers blob, extra text);
create index readings_by_step on readings (series, step);
create table findings (id integer primary key, run integer not null references runs, step integer not null,
    time real not null, finding text not null);
"""


@dataclass(frozen=True)
class RunInfo:
    """A run in a store. ``ended`` is None while it goes on, for ever if it was killed; epoch seconds."""

    id: int
    name: str
    started: float
    seen: float
    ended: float | None
    outcome: str | None
    steps: int
    about: dict[str, Any]


class RunStore:
    """A store, opened to read, or with ``write=True`` to write, which makes the file if need be.

    Raises:
        ValueError: if the file is not a run store, was made by a newer thalweg, cannot be read or, with
            ``write``, cannot be written.
    """

    def __init__(self, path: str | Path, *, write: bool = False):
        self.path = Path(path)
        self.series: dict[tuple[int, str, tuple[str, ...]], int] = {}
        if not write and not self.path.is_file():
            raise ValueError(f"store must be an existing run store, got {str(self.path)!r}: no such file")
        try:
            if write:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            self.db = self._connect("rwc" if write else "ro")
        except (sqlite3.Error, OSError) as error:
            raise ValueError(f"store {str(self.path)!r} cannot be opened: {error}") from None
        try:
            try:
                self._check(write)
            except sqlite3.OperationalError:
                # A closed store where nobody may write: reading it needs no lock, but SQLite must be told.
                if write or Path(f"{self.path}-wal").exists():
                    raise
                self.db.close()
                self.db = self._connect("ro&immutable=1")
                self._check(write)
        except sqlite3.Error as error:
            self.db.close()
            why = "is not a run store"
            if isinstance(error, sqlite3.OperationalError):
                why = f"cannot be {'written' if write else 'read'}"
            raise ValueError(f"store {str(self.path)!r} {why}: {error}") from None
        except ValueError:
            self.db.close()
            raise

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=5)

    def _check(self, write: bool) -> None:
        if write and self._stamps() == (0, 0, 0):
            self.db.execute("pragma journal_mode = wal")
            self.db.execute("begin immediate")
            # Another process may have made the store since we looked.
            if self._stamps() == (0, 0, 0):
                for statement in TABLES.split(";")[:-1]:
                    self.db.execute(statement)
                self.db.execute(f"pragma application_id = {APPLICATION}")
                self.db.execute(f"pragma user_version = {SCHEMA}")
            self.db.execute("commit")
        application, version, _ = self._stamps()
        if application != APPLICATION:
            raise ValueError(f"store {str(self.path)!r} is not a run store of thalweg")
        if version > SCHEMA:
            raise ValueError(
                f"store {str(self.path)!r} has schema {version}, this thalweg reads up to {SCHEMA}"
            )
        if write:
            # In WAL mode this survives the death of the process; only a power cut can lose the last commits.
            self.db.execute("pragma synchronous = normal")
            self.db.execute("begin immediate")
            self.db.execute("update runs set seen = seen where 0")
            self.db.execute("commit")

    def _stamps(self) -> tuple[int, int, int]:
        """Application, schema version and how many tables there are."""
        asked = ("pragma application_id", "pragma user_version", "select count(*) from sqlite_master")
        application, version, tables = (self.db.execute(one).fetchone()[0] for one in asked)
        return application, version, tables

    def close(self) -> None:
        """Let go of the file; closing again does nothing."""
        self.db.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing.

    def begin(self, name: str, about: dict[str, Any]) -> int:
        """Start a run and give its id."""
        now = time.time()
        row = (name, now, now, json.dumps(about))
        cursor = self.db.execute("insert into runs (name, started, seen, about) values (?, ?, ?, ?)", row)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def write(
        self, run: int, step: int, readings: Iterable[tuple[float, Reading]], findings: Iterable[Finding]
    ) -> None:
        """Add timed readings and findings in one transaction: all of them are stored, or none."""
        now = time.time()
        series = dict(self.series)
        self.db.execute("begin immediate")
        try:
            rows = [
                (
                    self._series(series, run, r),
                    r.step,
                    when,
                    r.value,
                    _pack(r.layers.values()),
                    _json(r.extra),
                )
                for when, r in readings
            ]
            self.db.executemany("insert into readings values (?, ?, ?, ?, ?, ?)", rows)
            for f in findings:
                row = (run, f.step, now, json.dumps(f.as_dict()))
                self.db.execute("insert into findings (run, step, time, finding) values (?, ?, ?, ?)", row)
            self.db.execute("update runs set seen = ?, steps = ? where id = ?", (now, step, run))
            self.db.execute("commit")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("rollback")
            raise
        self.series = series

    def end(self, run: int, outcome: str, **about: Any) -> None:
        """Mark a run as ended: ``finished`` or the name of an exception; ``about`` joins what is known."""
        (before,) = self.db.execute("select about from runs where id = ?", (run,)).fetchone()
        row = (time.time(), outcome, json.dumps({**json.loads(before), **about}), run)
        self.db.execute("update runs set ended = ?, outcome = ?, about = ? where id = ?", row)

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
        fields = list(RunInfo.__dataclass_fields__)
        rows = self.db.execute(f"select {', '.join(fields)} from runs order by id").fetchall()
        return [
            RunInfo(**{**dict(zip(fields, row, strict=True)), "about": json.loads(row[-1])}) for row in rows
        ]

    def names(self, run: int) -> list[str]:
        """What was measured in a run."""
        query = "select distinct name from series where run = ? order by name"
        return [name for (name,) in self.db.execute(query, (run,))]

    def readings(self, run: int, name: str, after: int = 0) -> list[Reading]:
        """The readings of one name behind step ``after``, in order."""
        query = """select r.step, r.value, s.layers, r.layers, r.extra
            from readings r join series s on s.id = r.series
            where s.run = ? and s.name = ? and r.step > ? order by r.step, r.rowid"""
        found = []
        for step, value, layers, packed, extra in self.db.execute(query, (run, name, after)):
            names = json.loads(layers)
            parts = dict(zip(names, _unpack(packed) if names else [], strict=True))
            number = float("nan") if value is None else value
            numbers = {key: float(one) for key, one in json.loads(extra or "{}").items()}
            found.append(Reading(step, name, number, parts, numbers))
        return found

    def findings(self, run: int) -> list[Finding]:
        """The findings of a run, in order."""
        rows = self.db.execute("select finding from findings where run = ? order by id", (run,))
        return [Finding.from_dict(json.loads(text)) for (text,) in rows]


def _pack(values: Iterable[float]) -> bytes | None:
    return array.array("f", values).tobytes() or None


def _unpack(packed: bytes) -> Sequence[float]:
    return array.array("f", packed)


def _json(extra: Mapping[str, float]) -> str | None:
    return json.dumps(plain(extra)) if extra else None
