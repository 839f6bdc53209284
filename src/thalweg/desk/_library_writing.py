"""Writing imported papers: rows, labels, and how many papers each day and each label has, all at once."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence

from thalweg.desk._library_labels import label_numbers, labels_of
from thalweg.desk._library_rows import FIELDS, columns, tag_columns, tags_of_row
from thalweg.desk.imported import Imported
from thalweg.desk.same_paper import may_be_same, plain_title
from thalweg.desk.tagging import NOTHING, Tags
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
    days: Counter[str] = Counter()
    labels: Counter[tuple[str, str]] = Counter()
    gone = [there[one.id] for one in newer]
    for row in gone:
        days[row["published"]] -= 1
        labels.subtract(labels_of(tags_of_row(row)))
    for one, found in zip(both, tags, strict=True):
        days[one.published] += 1
        labels.update(labels_of(found))
    ids = label_numbers(on, labels)
    on.executemany(
        "DELETE FROM labelled WHERE label = ? AND day = ? AND paper = ?",
        [(ids[name], row["published"], row["paper"]) for row in gone for name in labels_of(tags_of_row(row))],
    )
    rows = [
        (
            number,
            *columns(one),
            *tag_columns(found),
            there[one.id]["added"] if one.id in there else now,
            name,
        )
        for number, one, found, name in zip(numbers, both, tags, plain, strict=True)
    ]
    on.executemany(f"REPLACE INTO imported ({FIELDS}, plain) VALUES ({', '.join('?' * 18)})", rows)
    on.executemany(
        "INSERT INTO labelled VALUES (?, ?, ?)",
        [
            (ids[name], one.published, number)
            for number, one, found in zip(numbers, both, tags, strict=True)
            for name in labels_of(found)
        ],
    )
    on.executemany(
        "INSERT INTO days VALUES (?, ?) ON CONFLICT (day) DO UPDATE SET papers = papers + excluded.papers",
        [(day, count) for day, count in days.items() if count],
    )
    on.execute("UPDATE library SET change = change + 1")
