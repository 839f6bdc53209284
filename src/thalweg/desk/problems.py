"""What went wrong and was survived: a corrupt row, a broken feed, a full disk; the health page shows it."""

from __future__ import annotations

import sqlite3
import threading
import time
from dataclasses import dataclass, replace

from thalweg.desk.database import Database
from thalweg.desk.times import is_moment

__all__ = ["Problem", "Problems"]

SCHEMA = (
    """
    CREATE TABLE problems (
        source TEXT NOT NULL, what TEXT NOT NULL,
        first REAL NOT NULL, last REAL NOT NULL, times INTEGER NOT NULL,
        PRIMARY KEY (source, what)
    );
    """,
)
MOST = 200  # different problems that are kept; the oldest go first
# Of a file that nobody imports again; and of what happened once, which nothing calls solved.
PAST = "last < ? - CASE WHEN source LIKE 'import %' THEN 7 ELSE 30 END * 86400.0"


@dataclass(frozen=True)
class Problem:
    """``source`` is the part of the desk (``"ingest"``), ``what`` names the thing and the reason."""

    source: str
    what: str
    first: float
    last: float
    times: int


class Problems:
    """Kept in the database; in memory as well, for when the disk itself is the problem."""

    def __init__(self, database: Database | None) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._unsaved: dict[tuple[str, str], Problem] = {}
        if database is not None:
            database.ensure("problems", SCHEMA)

    def report(self, source: str, what: str) -> None:
        """Note a problem; it never raises. ``what`` must hold no secret: it is shown to readers."""
        now, what = time.time(), what[:500]
        try:
            if self._database is None:
                raise sqlite3.OperationalError("there is no database")
            with self._database.write() as on:
                on.execute(
                    "INSERT INTO problems VALUES (?, ?, ?, ?, 1) ON CONFLICT (source, what) "
                    "DO UPDATE SET last = excluded.last, times = times + 1",
                    (source, what, now, now),
                )
                on.execute(f"DELETE FROM problems WHERE {PAST}", (now,))
                on.execute(
                    "DELETE FROM problems WHERE rowid NOT IN "
                    "(SELECT rowid FROM problems ORDER BY last DESC LIMIT ?)",
                    (MOST,),
                )
        except sqlite3.Error:
            with self._lock:
                seen = self._unsaved.get((source, what), Problem(source, what, now, now, 0))
                if len(self._unsaved) < MOST or seen.times:
                    self._unsaved[source, what] = replace(seen, last=now, times=seen.times + 1)

    def all(self) -> list[Problem]:
        """Every problem, the latest first."""
        with self._lock:
            found = list(self._unsaved.values())
        if self._database is None:
            return sorted(found, key=lambda one: -one.last)
        try:
            sql = f"SELECT source, what, first, last, times FROM problems WHERE NOT ({PAST})"
            rows = self._database.rows(sql, (time.time(),))
        except sqlite3.Error as error:
            now = time.time()
            rows = []
            found.append(Problem("database", f"cannot be read: {error}", now, now, 1))
        found += [Problem(*row) for row in rows if _whole(*row)]
        return sorted(found, key=lambda one: -one.last)

    def solved(self, source: str) -> None:
        """Forget what a part of the desk reported: it works again."""
        with self._lock:
            self._unsaved = {key: one for key, one in self._unsaved.items() if key[0] != source}
        if self._database is None:
            return
        try:
            with self._database.write() as on:
                on.execute("DELETE FROM problems WHERE source = ?", (source,))
        except sqlite3.Error as error:
            self.report("database", f"cannot be written: {error}")


def _whole(source: object, what: object, first: object, last: object, times: object) -> bool:
    texts = isinstance(source, str) and isinstance(what, str)
    return texts and isinstance(times, int) and is_moment(first) and is_moment(last)
