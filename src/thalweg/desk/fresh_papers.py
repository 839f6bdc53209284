"""Imported papers that came after the search index was built: found by word, in a full-text index in memory.

The first question after an import reads what came, a tenth of a millisecond a paper.
"""

from __future__ import annotations

import sqlite3
import threading
from dataclasses import dataclass, field

from thalweg.desk.index.filters import Filters, within
from thalweg.desk.index.titles import number_of
from thalweg.desk.library import Library, Streamed
from thalweg.papers.words import match

__all__ = ["FreshPapers"]

MOST = 5000  # papers that are read; beyond, the index has to be built
_TITLE = 4.0  # what a word of the title is worth, in words of the abstract


@dataclass
class FreshPapers:
    """What the library holds beyond a number.

    ``complete`` says whether the last question saw all of it.
    """

    library: Library
    complete: bool = True
    _after: int = -1
    _change: int = -1
    _papers: dict[int, Streamed] = field(default_factory=dict)
    _titles: dict[int, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rank(self, question: str, filters: Filters, after: int, limit: int) -> list[int]:
        """Numbers, above ``after``, of the papers that hold a word of the question and pass, best first."""
        with self._lock:
            self._catch_up(after)
            asked = match(question)
            if not asked or not self._papers:
                return []
            rows = self._words.execute(
                f"SELECT rowid FROM fresh WHERE fresh MATCH ? ORDER BY bm25(fresh, {_TITLE}, 1), rowid DESC",
                (asked,),
            )
            passing = (row for (row,) in rows if _passes(self._papers[row], filters))
            return [row for row, _ in zip(passing, range(limit), strict=False)]

    def titled(self, title: str, after: int) -> list[int]:
        """Numbers, above ``after``, of the papers that have this title, the newest first."""
        with self._lock:
            self._catch_up(after)
            return self._titles.get(number_of(title), [])[::-1]

    def _catch_up(self, after: int) -> None:
        change = self.library.newest_change()
        if (after, change) == (self._after, self._change):
            return
        # From the beginning: a paper may have been changed, and the index may have taken some over.
        self._papers, self._titles = {}, {}
        self._words = sqlite3.connect(":memory:", check_same_thread=False)
        self._words.execute(
            "CREATE VIRTUAL TABLE fresh USING fts5(title, abstract, content='', tokenize='porter unicode61')"
        )
        self.complete = True
        for one in self.library.stream(after):
            if len(self._papers) == MOST:
                self.complete = False
                break
            self._papers[one.row] = one._replace(abstract="")
            if number := number_of(one.title):
                self._titles.setdefault(number, []).append(one.row)
            insert = "INSERT INTO fresh (rowid, title, abstract) VALUES (?, ?, ?)"
            self._words.execute(insert, (one.row, one.title, one.abstract))
        self._after, self._change = after, change


def _passes(one: Streamed, filters: Filters) -> bool:
    return (
        filters.topic in ("", *one.topics)
        and filters.room in ("", one.room)
        and within(one.day, filters.since, filters.until)
    )
