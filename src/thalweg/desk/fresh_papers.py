"""Imported papers that came or changed after the search index was built: found by word, from memory.

The first question after an import reads what came, a tenth of a millisecond a paper.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import threading
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from thalweg.desk._library_rows import Streamed
from thalweg.desk.index.build import MANIFEST
from thalweg.desk.index.filters import Filters, within
from thalweg.desk.index.search_index import stamp
from thalweg.desk.index.titles import number_of
from thalweg.desk.library import Library
from thalweg.papers.words import match

__all__ = ["FreshPapers"]

MOST = 5000  # papers that are read; beyond, the index has to be built
_TITLE = 4.0  # what a word of the title is worth, in words of the abstract


@dataclass
class FreshPapers:
    """What the library holds beyond a number, and what changed since the index in use was begun.

    ``complete`` says whether the last question saw all of it.
    """

    library: Library
    complete: bool = True
    _seen: tuple[int, int, str] | None = None
    _papers: dict[int, Streamed] = field(default_factory=dict)
    _titles: dict[int, list[int]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def rank(self, question: str, filters: Filters, after: int, limit: int) -> list[int]:
        """Numbers of the papers that hold a word of the question and pass, best first.

        Args:
            after: the last number that the index in use holds; 0 without one.
        """
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
        """Numbers of the papers that have this title, the newest first; ``after`` as for :meth:`rank`."""
        with self._lock:
            self._catch_up(after)
            return self._titles.get(number_of(title), [])[::-1]

    def _catch_up(self, after: int) -> None:
        folder = self.library.database.folder / "search"
        now = after, self.library.newest_change(), stamp(folder)
        if now == self._seen:
            return
        # From the beginning: a paper may have been changed, and the index may have taken some over.
        self._papers, self._titles = {}, {}
        self._words = sqlite3.connect(":memory:", check_same_thread=False)
        self._words.execute(
            "CREATE VIRTUAL TABLE fresh USING fts5(title, abstract, content='', tokenize='porter unicode61')"
        )
        self.complete = True
        changed = self.library.replaced(_change(folder / now[2]), after, MOST + 1) if after else ()
        for one in chain(self.library.stream(after), changed):
            if len(self._papers) == MOST:
                self.complete = False
                break
            self._papers[one.row] = one._replace(abstract="")
            if number := number_of(one.title):
                self._titles.setdefault(number, []).append(one.row)
            insert = "INSERT INTO fresh (rowid, title, abstract) VALUES (?, ?, ?)"
            self._words.execute(insert, (one.row, one.title, one.abstract))
        self._seen = now


def _change(index: Path) -> int:
    """The change of the library from which an index was made; one that cannot be read lacks nothing."""
    try:
        return int(json.loads((index / MANIFEST).read_text(encoding="utf8"))["change"])
    except (OSError, ValueError, KeyError, TypeError):
        return sys.maxsize


def _passes(one: Streamed, filters: Filters) -> bool:
    return (
        filters.holds(one.row)
        and filters.topic in ("", *one.topics)
        and filters.room in ("", one.room)
        and within(one.day, filters.since, filters.until)
    )
