"""Imported papers that were replaced: the search index knows them as they were, until it is built again."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from thalweg.desk._library_rows import SEARCHED


def note_replaced(on: sqlite3.Connection, papers: Iterable[int]) -> None:
    """Say that these were replaced in the change under way, which has not been counted yet."""
    on.executemany("REPLACE INTO replaced SELECT ?, change + 1 FROM library", [(paper,) for paper in papers])


def replaced(on: sqlite3.Connection, since: int, last: int, most: int) -> list[sqlite3.Row]:
    """At most ``most`` papers numbered up to ``last`` that were replaced after a change, the latest first."""
    # The plus keeps SQLite from walking all that were ever replaced, of which few are asked for.
    return on.execute(
        f"SELECT imported.paper, {', '.join(SEARCHED)} FROM replaced JOIN imported USING (paper) "
        "WHERE replaced.change > ? AND +replaced.paper <= ? ORDER BY replaced.change DESC LIMIT ?",
        (since, last, most),
    ).fetchall()


def behind(on: sqlite3.Connection, since: int, last: int, most: int) -> int:
    """How many papers, ``most`` at most, have a number above ``last`` or were replaced after a change."""
    new, old = on.execute(
        "SELECT (SELECT count(*) FROM (SELECT 1 FROM imported WHERE paper > ? LIMIT ?)), "
        "(SELECT count(*) FROM (SELECT 1 FROM replaced WHERE change > ? AND +paper <= ? LIMIT ?))",
        (last, most, since, last, most),
    ).fetchone()
    return min(new + old, most)
