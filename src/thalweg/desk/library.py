"""Imported papers, a million of them if need be: every question that a page asks is answered by an index."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from thalweg.desk._library_changes import behind, replaced
from thalweg.desk._library_joining import join, titles_of_several
from thalweg.desk._library_repair import repair
from thalweg.desk._library_rows import (
    FIELDS,
    SEARCHED,
    Streamed,
    later,
    papers_of_rows,
    rows_of_ids,
    streamed,
    without_future,
)
from thalweg.desk._library_schema import SCHEMA
from thalweg.desk._library_twins import kept_id, rows_of_titles, without_twins
from thalweg.desk._library_writing import write
from thalweg.desk.database import Database
from thalweg.desk.imported import Imported, arxiv_id
from thalweg.desk.paper import Paper
from thalweg.desk.same_paper import plain_title
from thalweg.desk.tagging import Tags, tagger

__all__ = ["Added", "Library"]

COUNTED = "papers > 0 AND typeof(papers) = 'integer' AND typeof(name) = 'text'"
AT_ONCE = 2000  # rows that a reader of everything takes at once, so that it never holds up a checkpoint


class Added(NamedTuple):
    """How many papers of a batch were new, newer than what was there, and known already."""

    new: int = 0
    newer: int = 0
    known: int = 0


@dataclass
class Library:
    """The imported papers in the desk's database.

    Args:
        tags: titles and abstracts in, topics, room and findings out; the built-in catalog's by default.
    """

    database: Database
    tags: Callable[[Sequence[str]], Sequence[Tags]] | None = None

    def __post_init__(self) -> None:
        prepare(self.database)

    def add(self, papers: Iterable[Imported], on: sqlite3.Connection | None = None) -> Added:
        """Take papers, all or none; on the disk when this returns, or when the transaction of ``on`` is."""
        if on is None:
            with self.database.write() as on:
                return self.add(papers, on)
        latest: dict[str, Imported] = {}
        for one in papers:
            if one.id not in latest or one.updated >= latest[one.id].updated:
                latest[one.id] = one
        given = len(latest)
        there = {row["id"]: row for row in rows_of_ids(on, latest)}
        others = without_twins(on, {name: one for name, one in latest.items() if name not in there})
        latest = {name: one for name, one in latest.items() if name in there or name in others}
        there |= {row["id"]: row for row in rows_of_ids(on, others)}
        latest = {name: without_future(one, there.get(name)) for name, one in latest.items()}
        new = [one for one in latest.values() if one.id not in there]
        newer = [
            merged
            for one in latest.values()
            if one.id in there and (merged := later(there[one.id], one)) is not None
        ]
        if new or newer:
            guess = self.tags or tagger()
            write(on, new, newer, there, guess)
            join(on, {plain_title(one.title) for one in newer}, guess)
        return Added(len(new), len(newer), given - len(new) - len(newer))

    def join_twins(self) -> int:
        """Make one of papers that are stored twice; how many rows that ended. Safe to stop and to repeat."""
        ended, last = 0, ""
        while titles := titles_of_several(self.database.connection, last, AT_ONCE):
            with self.database.write() as on:
                ended += join(on, titles, self.tags or tagger())
            last = titles[-1]
        return ended

    def repair(self) -> list[str]:
        """Put damaged rows and counts right, all or none; ids of papers that are to be imported again."""
        with self.database.write() as on:
            return repair(on)

    def set_repositories(self, addresses: dict[str, str]) -> int:
        """Say where the code of papers is, by id, for those that are here and do not; how many it was."""
        with self.database.write() as on:
            before = on.total_changes
            on.executemany(
                "UPDATE imported SET repository = ? WHERE id = ? AND repository = ''",
                [(address, kept_id(on, name)) for name, address in addresses.items()],
            )
            changed = on.total_changes - before
            on.execute("UPDATE library SET change = change + ?", (min(changed, 1),))
        return changed

    def newest_change(self) -> int:
        """A number that grows with everything that is imported."""
        rows = self.database.rows("SELECT change FROM library WHERE typeof(change) = 'integer'")
        return rows[0][0] if rows else 0

    def days(self) -> list[tuple[str, int]]:
        """Every day (a month or an empty text where no more is known) with the number of its papers."""
        rows = self.database.rows(
            "SELECT day, papers FROM days WHERE papers > 0 AND typeof(papers) || typeof(day) = 'integertext'"
        )
        return [(day, papers) for day, papers in rows]

    def count(self) -> int:
        """How many papers there are."""
        return sum(papers for _, papers in self.days())

    def by_id(self, name: str) -> Paper | None:
        """The paper with this id or key, if there is one; an arXiv id may have a version."""
        name = arxiv_id(name.replace("~", "/")) or name.replace("~", "/")
        found = by_ids(self, [name]) or by_ids(self, [kept_id(self.database.connection, name)])
        return found[0][1] if found else None

    def by_rowid(self, rows: Sequence[int]) -> list[Paper]:
        """Papers by their numbers, in that order; those that are not there are left out."""
        found = self.numbered(rows)
        return [found[row] for row in rows if row in found]

    def numbered(self, rows: Sequence[int]) -> dict[int, Paper]:
        """Papers by their numbers, under these numbers."""
        found = self.database.rows(
            f"SELECT {FIELDS} FROM imported WHERE paper IN (SELECT value FROM json_each(?))",
            (json.dumps(list(rows)),),
        )
        return papers_of_rows(found)

    def of_repository(self, name: str, most: int = 20) -> list[int]:
        """Numbers of papers whose code is at an address such as ``github.com/owner/name``, newest first."""
        starts, ends = ("https://", "http://", "https://www."), ("", ".git", "/")
        addresses = [f"{start}{name.lower()}{end}" for start in starts for end in ends]
        rows = self.database.rows(
            "SELECT paper FROM imported WHERE repository <> '' "
            f"AND lower(repository) IN ({', '.join('?' * len(addresses))}) ORDER BY paper DESC LIMIT ?",
            (*addresses, most),
        )
        return [row["paper"] for row in rows]

    def of_day(self, day: str, skip: int, count: int, without: str = "[]") -> list[Paper]:
        """``count`` papers of a day after the first ``skip``, the latest submission first.

        Args:
            without: numbers of papers to leave out, as JSON.
        """
        rows = self.database.rows(
            f"SELECT {FIELDS} FROM imported WHERE published = ? "
            "AND paper NOT IN (SELECT value FROM json_each(?)) "
            "ORDER BY submitted DESC, paper DESC LIMIT ? OFFSET ?",
            (day, without, count, skip),
        )
        return list(papers_of_rows(rows).values())

    def newest(
        self,
        count: int,
        skip: int = 0,
        without: Collection[int] = (),
        first: str = "",
        last: str = "~",
    ) -> list[Paper]:
        """``count`` papers after the first ``skip``, latest day first; days from ``first`` to ``last``."""
        rows = self.database.rows(
            f"SELECT {FIELDS} FROM imported WHERE paper NOT IN (SELECT value FROM json_each(?)) "
            "AND published BETWEEN ? AND ? "
            "ORDER BY published DESC, submitted DESC, paper DESC LIMIT ? OFFSET ?",
            (json.dumps(list(without)), first, last, count, skip),
        )
        return list(papers_of_rows(rows).values())

    def with_labels(
        self,
        labels: Mapping[str, str],
        count: int,
        without: Collection[int] = (),
        first: str = "",
        last: str = "~",
        after: int = 0,
    ) -> list[tuple[str, int]]:
        """Day and number of the newest ``count`` papers that have every label (``{"topic": "spikes"}``).

        Their days are from ``first`` to ``last``, their numbers above ``after``.
        """
        numbers = self.label_numbers(labels)
        if None in numbers:
            return []
        also = " AND EXISTS (SELECT 1 FROM labelled l WHERE (l.label, l.day, l.paper) = (?, a.day, a.paper))"
        rows = self.database.rows(
            f"SELECT day, paper FROM labelled a WHERE label = ?{also * (len(numbers) - 1)} "
            "AND day BETWEEN ? AND ? AND paper > ? AND paper NOT IN (SELECT value FROM json_each(?)) "
            "ORDER BY day DESC, paper DESC LIMIT ?",
            (*numbers, first, last, after, json.dumps(list(without)), count),
        )
        return [(row["day"], row["paper"]) for row in rows]

    def numbers_with(self, kind: str, name: str) -> frozenset[int]:
        """Numbers of all papers with a label."""
        (label,) = self.label_numbers({kind: name})
        rows = self.database.rows("SELECT paper FROM labelled WHERE label = ?", (label,)) if label else []
        return frozenset(row[0] for row in rows)

    def label_numbers(self, labels: Mapping[str, str]) -> list[int | None]:
        """The number of each label, the rarest first; None for one that no paper has."""
        found = [
            self.database.rows(
                f"SELECT label, papers FROM labels WHERE kind = ? AND name = ? AND {COUNTED}", pair
            )
            for pair in labels.items()
        ]
        if not all(found):
            return [None]
        return [row["label"] for (row,) in sorted(found, key=lambda rows: rows[0]["papers"])]

    def label_counts(self, kind: str) -> dict[str, int]:
        """Names of a kind (topic, room, finding) with the number of their papers."""
        rows = self.database.rows(f"SELECT name, papers FROM labels WHERE kind = ? AND {COUNTED}", (kind,))
        return {row["name"]: row["papers"] for row in rows}

    def stream(self, after: int = 0) -> Iterator[Streamed]:
        """Every paper whose number is above ``after``, in the order of numbers."""
        while True:
            rows = self.database.rows(
                f"SELECT paper, {', '.join(SEARCHED)} FROM imported WHERE paper > ? ORDER BY paper LIMIT ?",
                (after, AT_ONCE),
            )
            yield from map(streamed, rows)
            if len(rows) < AT_ONCE:
                return
            after = rows[-1]["paper"]

    def replaced(self, since: int, last: int, most: int) -> Iterator[Streamed]:
        """``most`` papers at most, numbered up to ``last``, that changed after ``since``, latest first."""
        return map(streamed, replaced(self.database.connection, since, last, most))

    def behind(self, since: int, last: int, most: int) -> int:
        """How many papers, ``most`` at most, an index of change ``since`` and number ``last`` lacks."""
        return behind(self.database.connection, since, last, most)


def prepare(database: Database) -> None:
    """Bring the tables."""
    database.connection.create_function("plain_title", 1, plain_title, deterministic=True)
    database.ensure("library", SCHEMA)


def by_ids(library: Library, names: Iterable[str]) -> list[tuple[int, Paper]]:
    """The papers with these ids that are there, with their numbers."""
    return list(papers_of_rows(rows_of_ids(library.database.connection, names)).items())


def by_titles(library: Library, titles: Iterable[str]) -> list[tuple[int, Paper]]:
    """The papers with these plain titles, with their numbers."""
    return list(papers_of_rows(rows_of_titles(library.database.connection, titles)).items())
