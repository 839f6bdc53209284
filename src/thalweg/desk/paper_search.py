"""One answer out of two collections: the catalog, which knows its papers well, and what was imported.

Each ranks its own papers; a paper is worth the mean of what its places in the rankings are worth.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from itertools import chain, zip_longest

from thalweg.desk.imported_search import ImportedSearch
from thalweg.desk.index.filters import Filters
from thalweg.desk.library import Library
from thalweg.desk.paper import Paper
from thalweg.desk.problems import Problems
from thalweg.papers.search import near, search, similar

__all__ = ["Found", "PaperSearch"]


@dataclass(frozen=True)
class Found:
    """A paper and what of the question matched."""

    paper: Paper
    why: str


class PaperSearch:
    """Search over both; ``note`` says what of the imported papers could not be searched, if anything.

    Args:
        library: imported papers, if there can be any.
        problems: told when they cannot be searched; the catalog answers without them.
    """

    def __init__(self, library: Library | None = None, problems: Problems | None = None) -> None:
        self._imported = None if library is None else ImportedSearch(library, problems)
        self._library = library
        self._problems = problems

    @property
    def note(self) -> str:
        return self._imported.note if self._imported else ""

    def find(
        self,
        question: str,
        ours: dict[str, Paper],
        filters: Filters | None,
        known: dict[int, str],
        start: int,
        count: int,
    ) -> list[Found]:
        """``count`` papers that fit a question from the ``start``-th on, best first.

        Args:
            ours: papers of the catalog that may be found, by key.
            filters: what imported papers have to pass; None leaves them out.
            known: numbers of imported papers that are in the catalog too.
        """
        if not question.strip():
            return []
        depth = start + count
        worth: dict[str | int, tuple[float, str]] = {
            hit.entry.key: (hit.score, hit.why) for hit in search(question, depth, among=ours)
        }
        if filters is not None:
            theirs = self._ranked(question, filters, depth + len(known))
            worth |= {row: found for row, found in theirs.items() if row not in known}
        # Of equals the catalog's come first: they are the ones with code and measurements.
        best = sorted(worth, key=lambda name: (-worth[name][0], isinstance(name, int)))[start:depth]
        read = self._read([name for name in best if isinstance(name, int)])
        papers = [(read.get(name) if isinstance(name, int) else ours[name], worth[name][1]) for name in best]
        return [Found(paper, why) for paper, why in papers if paper]

    def alike(self, paper: Paper, catalog: dict[str, Paper], count: int) -> list[Paper]:
        """The papers nearest in meaning to one, of the catalog and imported ones by turns."""
        text = f"{paper.title} {' '.join(paper.topics)} {paper.summary} {paper.claim}"
        if paper.entry:
            entries = [entry for entry, _ in similar(paper.key, count + 1)]
        else:
            entries = [entry for entry, _ in near(text, count + 1)]
        ours = [catalog[entry.key] for entry in entries if entry.key in catalog]
        theirs = list(self._read(self._near(paper, count + 1)).values())
        turns = chain.from_iterable(zip_longest(ours, theirs))
        different = {one.id: catalog.get(one.id, one) for one in turns if one and one.id != paper.id}
        return list(different.values())[:count]

    def _ranked(self, question: str, filters: Filters, depth: int) -> dict[int, tuple[float, str]]:
        try:
            return self._imported.rank(question, filters, depth) if self._imported else {}
        except sqlite3.Error as error:
            self._unreadable(error)
            return {}

    def _near(self, paper: Paper, count: int) -> list[int]:
        try:
            return self._imported.near(paper.title, paper.summary, count) if self._imported else []
        except sqlite3.Error as error:
            self._unreadable(error)
            return []

    def _read(self, rows: list[int]) -> dict[int, Paper]:
        try:
            found = {row: self._library.by_rowid([row]) for row in rows} if self._library else {}
        except sqlite3.Error as error:
            self._unreadable(error)
            found = {}
        return {row: papers[0] for row, papers in found.items() if papers}

    def _unreadable(self, error: sqlite3.Error) -> None:
        if self._problems:
            self._problems.report("library", f"imported papers cannot be searched: {error}")
