"""One answer out of two collections: the catalog, which knows its papers well, and what was imported.

What is asked for by name comes first. Else each collection ranks its own papers, and the two lists are merged
by what all their papers are worth on one scale.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from thalweg.desk.common_scale import fit_to, likeness, merged
from thalweg.desk.imported_search import ImportedSearch
from thalweg.desk.index.filters import Filters, within
from thalweg.desk.library import Library
from thalweg.desk.paper import Paper
from thalweg.desk.problems import Problems
from thalweg.papers.search import (
    has_encoder,
    meant_by,
    named,
    near,
    search,
    similar,
    vector_of_question,
    vectors_of,
)

__all__ = ["Found", "PaperSearch"]

Name = str | int  # the key of a paper of the catalog, or the number of an imported one
POOL = 60  # papers of each collection that are compared
DEEPEST = 2100  # of each, for the last page that can be asked for


@dataclass(frozen=True)
class Found:
    """A paper and what of the question matched."""

    paper: Paper
    why: str


@dataclass(frozen=True)
class _Asked:
    """A question, and what may be found by it, as for :meth:`PaperSearch.find`."""

    question: str
    ours: dict[str, Paper]
    filters: Filters | None
    known: dict[int, str]


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

    @property
    def judges(self) -> str:
        """What judges meaning, as a reader may be told."""
        covered, count = self._imported.covered() if self._imported else (0, 0)
        if covered == count or not has_encoder():
            return meant_by()
        return f"{meant_by()}; of {count:,} imported papers {covered:,} by MiniLM"

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
        asked = _Asked(question, ours, filters, known)
        named = self._named(asked)
        why: dict[Name, str] = dict.fromkeys(named, "name")
        order = self._order(asked, start + count + len(named), why)
        best = list(dict.fromkeys([*named, *order]))[start : start + count]
        read = self._read([name for name in best if isinstance(name, int)])
        papers = [(read.get(name) if isinstance(name, int) else ours[name], why[name]) for name in best]
        return [Found(paper, why) for paper, why in papers if paper]

    def _order(self, asked: _Asked, depth: int, why: dict[Name, str]) -> list[Name]:
        """At least ``depth`` papers, if so many fit, best first; the same ones whatever the depth."""
        mine, theirs = self._both(asked, POOL, why)
        order: list[Name] = [*mine, *theirs]
        if mine and theirs:
            read = self._read(list(theirs))
            names: list[Name] = [*mine, *read]
            papers = [*(asked.ours[key] for key in mine), *read.values()]
            likes = self._cosines(vector_of_question(asked.question), list(mine), list(read))
            fit = fit_to(asked.question, papers, self._project, self._holders, likes)
            graded = list(zip(names, fit, strict=True))
            order = merged(graded[: len(mine)], graded[len(mine) :])
        if depth <= len(order) or max(len(mine), len(theirs)) < POOL:
            return order
        # Beyond the first pages nothing is compared: what is left comes in the order of the rankings.
        held, worth = {*order}, dict[Name, float]()
        for some in self._both(asked, DEEPEST, why):
            worth.update((name, one) for name, one in some.items() if name not in held)
        return order + sorted(worth, key=lambda name: (-worth[name], isinstance(name, int)))

    def _both(
        self, asked: _Asked, depth: int, why: dict[Name, str]
    ) -> tuple[dict[str, float], dict[int, float]]:
        """The best of each collection, best first, with their worth in it; ``why`` gets what matched."""
        hits = search(asked.question, depth, among=asked.ours)
        found = {}
        if asked.filters is not None:
            found = self._ranked(asked.question, asked.filters, depth + len(asked.known))
        rows = sorted(found.keys() - asked.known.keys(), key=lambda row: (-found[row][0], -row))[:depth]
        for hit in hits:
            why.setdefault(hit.entry.key, hit.why)
        for row in rows:
            why.setdefault(row, found[row][1])
        return {hit.entry.key: hit.score for hit in hits}, {row: found[row][0] for row in rows}

    def alike(
        self, paper: Paper, catalog: dict[str, Paper], known: Collection[int], count: int
    ) -> list[Paper]:
        """The papers nearest in meaning to one, imported ones among those of the catalog."""
        text = f"{paper.summary} {paper.claim}"
        if paper.entry:
            entries = [entry for entry, _ in similar(paper.key, count + 1)]
        else:
            guessed = " ".join(paper.topics)
            entries = [entry for entry, _ in near(f"{paper.title} {guessed} {text}", count + 1)]
        ours = [catalog[entry.key] for entry in entries if entry.key in catalog]
        rows = self._near(paper, count + 1 + len(known))
        theirs = list(self._read([row for row in rows if row not in known][: count + 1]).values())
        papers = {one.id: one for one in (*ours, *theirs) if one.id != paper.id}
        if not (ours and theirs):
            return list(papers.values())[:count]
        like = likeness((paper.title, text), list(papers.values()), self._project).tolist()
        worth = dict(zip(papers, like, strict=True))
        lists = ([(one.id, worth[one.id]) for one in some if one.id in worth] for some in (ours, theirs))
        return [papers[str(name)] for name in merged(*lists)][:count]

    def _cosines(
        self, vector: np.ndarray | None, keys: Sequence[str], rows: Sequence[int]
    ) -> np.ndarray | None:
        """MiniLM's cosines of papers of both collections with a vector; NaN for those that have none."""
        if vector is None or self._imported is None:
            return None
        theirs = self._imported.vectors(rows)
        if not theirs.any():
            return None
        vectors = np.concatenate([vectors_of(keys), theirs])
        return np.where(vectors.any(axis=1), vectors @ vector, np.nan)

    def _named(self, asked: _Asked) -> list[Name]:
        """Papers whose id, repository, key or exact title the question is, and which pass."""
        found: list[Name] = [entry.key for entry in named(asked.question) if entry.key in asked.ours]
        if asked.filters is None or self._imported is None:
            return found
        try:
            rows = [row for row in self._imported.named(asked.question) if row not in asked.known]
        except sqlite3.Error as error:
            self._unreadable(error)
            return found
        read = self._read([row for row in rows if asked.filters.holds(row)])
        return found + [row for row, one in read.items() if _passes(one, asked.filters)]

    def _project(self, texts: Sequence[tuple[str, str]]) -> np.ndarray | None:
        return self._imported.project(texts) if self._imported else None

    def _holders(self, stems: np.ndarray) -> tuple[np.ndarray, int]:
        return self._imported.holders(stems) if self._imported else (np.zeros(len(stems), np.int64), 0)

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
            found = self._library.numbered(rows) if self._library and rows else {}
        except sqlite3.Error as error:
            self._unreadable(error)
            found = {}
        return {row: found[row] for row in rows if row in found}

    def _unreadable(self, error: sqlite3.Error) -> None:
        if self._problems:
            self._problems.report("library", f"imported papers cannot be searched: {error}")


def _passes(one: Paper, filters: Filters) -> bool:
    return (
        filters.topic in ("", *one.topics)
        and filters.room in ("", one.room)
        and within(one.date, filters.since, filters.until)
    )
