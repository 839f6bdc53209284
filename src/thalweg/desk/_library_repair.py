"""Damaged rows of imported papers made whole or taken out, and days and labels counted anew."""

from __future__ import annotations

import sqlite3

from thalweg.desk._library_rows import FIELDS, damaged, made_whole
from thalweg.desk.same_paper import plain_title

__all__ = ["recount", "repair"]

AT_ONCE = 2000  # rows
LABELS = " UNION ".join(
    [
        *(
            f"SELECT '{kind}' AS kind, value AS name, published AS day, paper FROM imported, "
            f"json_each(iif(typeof({column}) = 'text' AND json_valid({column}), {column}, '[]')) "
            "WHERE typeof(value) = 'text'"
            for kind, column in (("topic", "topics"), ("finding", "addresses"))
        ),
        "SELECT 'room', room, published, paper FROM imported WHERE room != '' AND typeof(room) = 'text'",
    ]
)


def recount(on: sqlite3.Connection) -> None:
    """Count days and labels from the papers, in the transaction that ``on`` is in."""
    on.execute("DELETE FROM days")
    on.execute("INSERT INTO days SELECT published, count(*) FROM imported GROUP BY published")
    on.execute("DELETE FROM labelled")
    on.execute("DELETE FROM labels")
    on.execute(
        f"INSERT INTO labels (kind, name, papers) SELECT kind, name, count(*) FROM ({LABELS}) GROUP BY 1, 2"
    )
    on.execute(
        f"INSERT INTO labelled SELECT label, day, paper FROM ({LABELS}) JOIN labels USING (kind, name)"
    )


def repair(on: sqlite3.Connection) -> list[str]:
    """Put right what can be, in the transaction of ``on``; gives ids of papers that are to be imported again.

    A row without an id or a title is taken out, and so is what leads to a paper that is not there.
    """
    found, last = [], 0
    while rows := on.execute(
        f"SELECT {FIELDS}, plain FROM imported WHERE paper > ? ORDER BY paper LIMIT ?", (last, AT_ONCE)
    ).fetchall():
        last = rows[-1]["paper"]
        for row in rows:
            plain = plain_title(row["title"])
            if not damaged(row) and plain == row["plain"]:
                continue
            found.append(str(row["id"]))
            on.execute("DELETE FROM imported WHERE paper = ?", (row["paper"],))
            if values := made_whole(row):
                sql = f"INSERT OR IGNORE INTO imported ({FIELDS}, plain) VALUES ({', '.join('?' * 18)})"
                on.execute(sql, (*values, plain))
    on.execute("DELETE FROM imported WHERE paper < 1")
    on.execute("DELETE FROM aliases WHERE kept NOT IN (SELECT id FROM imported)")
    on.execute("DELETE FROM replaced WHERE paper NOT IN (SELECT paper FROM imported)")
    recount(on)
    on.execute("DELETE FROM library WHERE typeof(change) != 'integer' OR change NOT BETWEEN 0 AND 1 << 53")
    on.execute("INSERT INTO library VALUES (1, 1) ON CONFLICT DO UPDATE SET change = change + 1")
    return found
