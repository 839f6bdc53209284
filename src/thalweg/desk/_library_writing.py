"""Writing imported papers: rows, labels, and how many papers each day and each label has, all at once."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence

from thalweg.desk._library_changes import note_replaced
from thalweg.desk._library_labels import label_numbers, labels_of
from thalweg.desk._library_repair import recount
from thalweg.desk._library_rows import FIELDS, SEARCHED, columns, damaged, tag_columns, tags_of_row
from thalweg.desk.imported import Imported
from thalweg.desk.same_paper import may_be_same, plain_title
from thalweg.desk.tagging import NOTHING, Tags
from thalweg.desk.times import is_moment
from thalweg.papers.entry import load


def write(
    on: sqlite3.Connection,
    new: Sequence[Imported],
    newer: Sequence[Imported],
    there: dict[str, sqlite3.Row],
    guess: Callable[[Sequence[str]], Sequence[Tags]],
) -> None:
    """Add new papers and replace those in ``there`` by newer ones, in the transaction that ``on`` is in."""
    both = [*new, *newer]
    # What the catalog has is tagged there, by hand.
    ours = {entry.arxiv for entry in load()}
    titles = {title: entry.arxiv or entry.key for entry in load() if (title := plain_title(entry.title))}
    guessed = guess([f"{one.title} {one.abstract}" for one in both])
    plain = [plain_title(one.title) for one in both]
    tags = [
        NOTHING if one.id in ours or (name in titles and may_be_same(titles[name], one.id)) else found
        for one, name, found in zip(both, plain, guessed, strict=True)
    ]
    last = on.execute("SELECT seq FROM sqlite_sequence WHERE name = 'imported'").fetchone()
    first = 1 + (last[0] if last else 0)
    numbers = [*range(first, first + len(new)), *(there[one.id]["paper"] for one in newer)]
    now = time.time()
    gone = [there[one.id] for one in newer]
    forget(on, gone)
    labels = label_numbers(on, Counter(name for found in tags for name in labels_of(found)))
    rows = [
        (
            number,
            *columns(one),
            *tag_columns(found),
            _added(there.get(one.id), now),
            name,
        )
        for number, one, found, name in zip(numbers, both, tags, plain, strict=True)
    ]
    on.executemany(f"INSERT INTO imported ({FIELDS}, plain) VALUES ({', '.join('?' * 18)})", rows)
    on.executemany(
        "INSERT OR REPLACE INTO labelled VALUES (?, ?, ?)",
        [
            (labels[name], one.published, number)
            for number, one, found in zip(numbers, both, tags, strict=True)
            for name in labels_of(found)
        ],
    )
    _count_days(on, Counter(one.published for one in both))
    again = zip(rows[len(new) :], gone, strict=True)
    note_replaced(on, [row[0] for row, old in again if _searched(row) != _searched(tuple(old))])
    if any(map(damaged, gone)):  # which hid under what they were counted
        recount(on)
    on.execute("INSERT INTO library VALUES (1, 1) ON CONFLICT DO UPDATE SET change = change + 1")


def _added(row: sqlite3.Row | None, now: float) -> float:
    return row["added"] if row is not None and is_moment(row["added"]) else now


def forget(on: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> None:
    """Take rows out, and out of the counts."""
    of_rows = [(row, name) for row in rows for name in labels_of(tags_of_row(row))]
    less: Counter[tuple[str, str]] = Counter()
    less.subtract(name for _, name in of_rows)
    labels = label_numbers(on, less)
    on.executemany(
        "DELETE FROM labelled WHERE label = ? AND day = ? AND paper = ?",
        [(labels[name], row["published"], row["paper"]) for row, name in of_rows],
    )
    days: Counter[str] = Counter()
    days.subtract(row["published"] for row in rows)
    _count_days(on, days)
    numbers = [(row["paper"],) for row in rows]
    on.executemany("DELETE FROM imported WHERE paper = ?", numbers)
    on.executemany("DELETE FROM replaced WHERE paper = ?", numbers)


def _count_days(on: sqlite3.Connection, days: Counter[str]) -> None:
    on.executemany(
        "INSERT INTO days VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET papers = papers + excluded.papers",
        days.items(),
    )


def _searched(row: Sequence[object]) -> list[object]:
    """What the search index holds of a row."""
    return [value for name, value in zip(FIELDS.split(", "), row, strict=False) if name in SEARCHED]
