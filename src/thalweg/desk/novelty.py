"""When this desk first had a paper of the catalog, and first had its verdict: what feeds and mail call new.

The catalog comes with the package and says of a paper only its month; what an upgrade brings is new on the
day of the upgrade, whatever its month.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from thalweg.desk.database import Database
from thalweg.desk.paper import Paper
from thalweg.desk.periods import start_of
from thalweg.desk.times import is_moment

__all__ = ["FirstSeen", "first_seen"]

SCHEMA = (
    """
    CREATE TABLE first_seen (
        paper TEXT PRIMARY KEY, appeared REAL NOT NULL, verdict TEXT NOT NULL, judged REAL NOT NULL
    );
    """,
    """
    ALTER TABLE first_seen ADD COLUMN seen REAL NOT NULL DEFAULT 0;
    UPDATE first_seen SET seen = unixepoch();
    """,
)
STARTED = time.time()  # when everything was first seen, for a desk without a database


@dataclass(frozen=True)
class FirstSeen:
    """When the paper was first here, and when its verdict became what it is (0: none), in seconds of 1970.

    ``seen`` is when this desk first looked, which is no news: of papers without a date nothing else is known.
    """

    appeared: float
    judged: float
    seen: float = field(default=STARTED, compare=False)

    @property
    def latest(self) -> float:
        """When there was last something new about the paper."""
        return max(self.appeared, self.judged)


def prepare(database: Database) -> None:
    """Bring the table."""
    database.ensure("first seen", SCHEMA)


def first_seen(
    database: Database | None, papers: Iterable[Paper], now: float | None = None
) -> dict[str, FirstSeen]:
    """By key, for papers of the catalog among ``papers``; what changed since the last time is written down.

    On a desk that sees the catalog for the first time nothing is new because of that: papers count from their
    month and verdicts from the day of the measurement. So it is, too, where there is no database, and for a
    paper whose row is damaged, which is written anew.
    """
    now = time.time() if now is None else now
    known: dict[str, sqlite3.Row] = {}
    if database is not None:
        known = {row["paper"]: row for row in database.rows("SELECT * FROM first_seen")}
    damaged = {key for key, row in known.items() if not all(map(is_moment, (row[1], row[3], row[4])))}
    found: dict[str, FirstSeen] = {}
    changed: list[tuple[str, float, str, float, float]] = []
    for one in papers:
        if one.entry is None:
            continue
        verdict = one.measured.verdict if one.measured else ""
        row = known.get(one.key)
        if row is not None and row["verdict"] == verdict and one.key not in damaged:
            found[one.key] = FirstSeen(row["appeared"], row["judged"], row["seen"])
            continue
        if known and one.key not in damaged:
            appeared, judged = (row["appeared"] if row else now), (now if verdict else 0.0)
        else:
            appeared = min(now, _start(one.date))
            judged = min(now, _start(one.measured.date)) if one.measured else 0.0
        looked = now if database is not None else STARTED
        if row is not None and is_moment(row["seen"]):
            looked = row["seen"]
        found[one.key] = FirstSeen(appeared, judged, looked)
        changed.append((one.key, appeared, verdict, judged, looked))
    if database is not None and changed:
        with database.write() as on:
            on.executemany("INSERT OR REPLACE INTO first_seen VALUES (?, ?, ?, ?, ?)", changed)
    return found


def _start(date: str) -> float:
    """A date that cannot be read is no reason to lose the paper."""
    try:
        return start_of(date)
    except ValueError:
        return 0.0
