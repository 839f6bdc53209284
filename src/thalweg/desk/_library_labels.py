"""Topics, rooms and findings of imported papers, kept so that a list of any of them needs no search."""

from __future__ import annotations

import sqlite3
from collections import Counter

from thalweg.desk.tagging import Tags


def labels_of(tags: Tags) -> list[tuple[str, str]]:
    """Kind and name of each."""
    return [
        *(("topic", name) for name in tags.topics),
        *(("finding", name) for name in tags.addresses),
        *([("room", tags.room)] if tags.room else []),
    ]


def label_numbers(on: sqlite3.Connection, counts: Counter[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Numbers of the labels, made where they are missing, their counts brought up to date."""
    found = {}
    for (kind, name), change in counts.items():
        row = on.execute(
            "INSERT INTO labels (kind, name, papers) VALUES (?, ?, ?) "
            "ON CONFLICT (kind, name) DO UPDATE SET papers = papers + excluded.papers RETURNING label",
            (kind, name, change),
        ).fetchone()
        found[kind, name] = row[0]
    return found
