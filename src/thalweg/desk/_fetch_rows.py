"""What was fetched from arXiv and how far it came, as the database keeps it."""

from __future__ import annotations

import datetime
import shlex
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from thalweg._core.checks import check_count
from thalweg.desk.arxiv_source import Query
from thalweg.desk.database import Database

EVERYTHING = 30_000  # papers of one query that the API gives


@dataclass(frozen=True)
class Fetch:
    """One query, how far it has come, and up to which moment everything was fetched before (``upto``)."""

    topic: str
    category: str
    since: str = ""
    until: str = ""
    most: int = EVERYTHING
    start: int = 0
    done: bool = False
    upto: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        return " in ".join(part for part in (self.topic, self.category) if part)

    @property
    def source(self) -> str:
        """Under which name its problems are reported."""
        return f"fetch {self.name}"

    @property
    def asked(self) -> str:
        """Topic and category, as they were typed."""
        given = {"topic": self.topic, "category": self.category}
        return shlex.join(part for name, value in given.items() if value for part in (f"--{name}", value))

    @property
    def command(self) -> str:
        """What to type so that it goes on."""
        since = f" --since {self.since}" if self.since else ""
        return f"thalweg papers fetch {self.asked}{since} --max {self.most}"


def fetches(database: Database, damaged: Callable[[str], None] = lambda name: None) -> list[Fetch]:
    """All that was ever fetched, by topic and category.

    Args:
        damaged: told of each row that cannot be what was stored, which is left out.
    """
    found = []
    for row in database.rows("SELECT * FROM fetches ORDER BY topic, category"):
        try:
            found.append(fetch_of(row))
        except (TypeError, ValueError):
            damaged(" in ".join(str(part) for part in (row["topic"], row["category"]) if part))
    return found


def fetch_of(row: sqlite3.Row) -> Fetch:
    """Raises ValueError or TypeError where a value is none of its column."""
    one = Fetch(**{**dict(row), "done": bool(row["done"])})
    Query(one.topic, one.category, one.since, one.until)
    # It has an end, and, once it was done, a moment up to which nothing is missing.
    moments = [one.until, one.upto] if one.done or one.upto else [one.until]
    for moment in moments:
        datetime.datetime.fromisoformat(moment)
    check_count("most", one.most)
    check_count("start", one.start, 0)
    return one
