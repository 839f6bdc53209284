"""The papers of a day, a week or a month as paper pages are read: by upvotes, then the latest submission."""

from __future__ import annotations

import json
import sqlite3

from thalweg.desk.counts import most_upvoted
from thalweg.desk.paper import Paper
from thalweg.desk.periods import Period
from thalweg.desk.problems import Problems
from thalweg.desk.shelf import Shelf

__all__ = ["by_votes"]

MOST = 5000  # papers with upvotes, the most first, that are looked for in a period


def by_votes(
    shelf: Shelf, period: Period, start: int, count: int, problems: Problems | None = None
) -> list[Paper]:
    """``count`` papers of a period from the ``start``-th on: those with upvotes first, then in reading order.

    Args:
        problems: told when votes cannot be read; the order is then that without votes.
    """
    if shelf.library is None:
        return shelf.order.page_of(period, start, count)
    try:
        first, rows = _voted(shelf, period)
    except sqlite3.Error as error:
        if problems:
            problems.report("votes", f"cannot be read: {error}")
        first, rows = [], {}
    shown = first[start : start + count]
    rest = shelf.order.without({one.key for one in first}, rows) if first else shelf.order
    return shown + rest.page_of(period, max(start - len(first), 0), count - len(shown))


def _voted(shelf: Shelf, period: Period) -> tuple[list[Paper], dict[int, str]]:
    """Papers of a period that somebody upvoted, the most first; numbers and days of the imported ones."""
    assert shelf.library is not None
    database, ours = shelf.library.database, shelf.by_id
    votes = dict(most_upvoted(database, 0.0, MOST))
    found = [(votes[key], ours[key].date, "", ours[key]) for key in votes if key in ours]
    rows = database.rows(
        "SELECT paper, published, submitted FROM imported "
        "WHERE id IN (SELECT value FROM json_each(?)) AND published BETWEEN ? AND ?",
        (json.dumps([key.replace("~", "/") for key in votes if key not in ours]), period.first, period.last),
    )
    days = {row["paper"]: row["published"] for row in rows if _within(row["published"], period)}
    times = {row["paper"]: str(row["submitted"]) for row in rows}
    for number, one in shelf.library.numbered(list(days)).items():
        found.append((votes[one.key], one.date, times[number], one))
    found = [one for one in found if _within(one[1], period)]
    found.sort(key=lambda one: one[:3], reverse=True)
    return [one for *_, one in found], days


def _within(date: str, period: Period) -> bool:
    return any(first <= date <= last for first, last in period.spans)
