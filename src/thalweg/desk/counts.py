"""How many upvotes and comments papers have, asked for a whole list at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import Request

from thalweg.desk.database import Database
from thalweg.desk.people import Person
from thalweg.desk.sessions import person_of

__all__ = ["Tally", "most_upvoted"]

# What json_each reads is one value, however many keys it holds.
SQL = """
SELECT value AS paper,
    (SELECT count(*) FROM votes WHERE votes.paper = value),
    (SELECT count(*) FROM comments WHERE comments.paper = value AND removed = '')
FROM json_each(?)
"""


@dataclass(frozen=True)
class Tally:
    """What a list says of a paper's votes and comments; ``voted`` is of the person who looks."""

    upvotes: int
    comments: int
    voted: bool


def counts(database: Database | None, keys: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Upvotes and comments of each key, ``(0, 0)`` where there are none or no database."""
    wanted = list(dict.fromkeys(keys))
    if database is None:
        return dict.fromkeys(wanted, (0, 0))
    return {row[0]: (row[1], row[2]) for row in database.rows(SQL, (json.dumps(wanted),))}


def most_upvoted(database: Database | None, since: float, limit: int = 100) -> list[tuple[str, int]]:
    """Keys with the number of their upvotes since a moment (seconds of 1970), the most first."""
    if database is None:
        return []
    rows = database.rows(
        "SELECT paper, count(*) FROM votes WHERE at >= ? AND typeof(paper) = 'text' GROUP BY paper "
        "ORDER BY count(*) DESC, max(at) DESC, paper LIMIT ?",
        (since, limit),
    )
    return [(row[0], row[1]) for row in rows]


def voted(database: Database, person: Person, keys: Iterable[str]) -> set[str]:
    """Which of these papers somebody has upvoted."""
    sql = "SELECT paper FROM votes WHERE person = ? AND paper IN (SELECT value FROM json_each(?))"
    return {row[0] for row in database.rows(sql, (person.id, json.dumps(list(keys))))}


def tallies(request: Request, keys: Iterable[str]) -> dict[str, Tally]:
    """By key; empty where there is no database or it cannot be read, and then lists show none."""
    database, person, wanted = request.app.state.database, person_of(request), list(keys)
    if database is None:
        return {}
    try:
        mine = voted(database, person, wanted) if person else set()
        return {key: Tally(*two, key in mine) for key, two in counts(database, wanted).items()}
    except sqlite3.Error as error:
        request.app.state.problems.report("database", f"votes cannot be read: {error}")
        return {}
