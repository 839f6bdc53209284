"""Search over imported papers: by the index, and by word among those that came after it was built.

What cannot be used is said on the page and on /health, and the rest answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from thalweg.desk.fresh_papers import MOST, FreshPapers
from thalweg.desk.index.build import build
from thalweg.desk.index.filters import Filters
from thalweg.desk.index.search_index import Rankings, SearchIndex, UnusableIndex, stamp
from thalweg.desk.index.vector_cache import VectorCache
from thalweg.desk.library import Library, by_ids
from thalweg.desk.problems import Problems
from thalweg.papers.entry import load
from thalweg.papers.minilm import DIMENSIONS
from thalweg.papers.names import arxiv_named, repository_named
from thalweg.papers.search import fuse, vector_of_question

__all__ = ["ImportedSearch", "index_folder", "rebuild"]


def index_folder(library: Library) -> Path:
    """Where the index of a library is."""
    return library.database.folder / "search"


def rebuild(
    library: Library,
    progress: Callable[[str, int], None] = lambda stage, done: None,
    *,
    sentences: bool = True,
) -> int:
    """Build the index over everything that is imported now, and give how many papers that is.

    Args:
        sentences: with the vectors of MiniLM that were made (:mod:`thalweg.desk.encoding`).

    Raises:
        ValueError: another build is under way.
        OSError: the disk is full; the old index stays.
    """
    change = library.newest_change()
    catalog = [(one.title, f"{' '.join(one.topics)} {one.summary} {one.claim}") for one in load()]
    folder = index_folder(library)
    cache = VectorCache(folder) if sentences else None
    return build(folder, library.stream(), change=change, beside=catalog, cache=cache, progress=progress)


class ImportedSearch:
    """Keeps the index open, and opens the next one when there is one.

    Args:
        problems: told of an index that is damaged or has fallen behind.
    """

    def __init__(self, library: Library, problems: Problems | None = None) -> None:
        self.library = library
        self.fresh = FreshPapers(library)
        self.note = ""
        self._problems = problems
        self._index: SearchIndex | None = None
        self._stamp: str | None = None
        self._lock = threading.Lock()

    def rank(self, question: str, filters: Filters, depth: int) -> dict[int, tuple[float, str]]:
        """Papers that fit a question: what each is worth (:func:`thalweg.papers.search.fuse`), and why."""
        found, after = Rankings([], {}), 0
        with self._noted():
            if index := self._opened():
                found = index.rankings(question, filters, depth, self._asked(index, question))
                after = index.last
        new = self.fresh.rank(question, filters, after, depth)
        if not self.fresh.complete and not self.note:
            self._note(f"more than {MOST} imported papers are not in the search index: thalweg papers index")
        # What is new was ranked by word only, and counts as if meaning had not found it.
        worth = fuse([found.by_word, list(found.by_meaning)]) | fuse([new, []])
        held = {*found.by_word, *new}
        return {row: (score, _why(row in held, found.by_meaning.get(row))) for row, score in worth.items()}

    def named(self, question: str) -> list[int]:
        """Numbers of the papers whose id, repository (or an address of either) or exact title it is."""
        name = arxiv_named(question) or question.strip().replace("~", "/")
        found = [row for row, _ in by_ids(self.library, [name])]
        if repository := repository_named(question):
            found += self.library.of_repository(repository)
        after = 0
        with self._noted():
            if index := self._opened():
                found, after = found + index.titled(question), index.last
        return list(dict.fromkeys([*found, *self.fresh.titled(question, after)]))

    def holders(self, stems: np.ndarray) -> tuple[np.ndarray, int]:
        """In how many papers of the index each stem is, and how many papers it has."""
        with self._noted():
            if index := self._opened():
                return index.holders(stems), index.count
        return np.zeros(len(stems), np.int64), 0

    def project(self, texts: Sequence[tuple[str, str]]) -> np.ndarray | None:
        """Unit vectors of titles with their texts in the index's latent semantic space, if there is one."""
        with self._noted():
            if index := self._opened():
                return index.project(texts)
        return None

    def near(self, title: str, abstract: str, count: int) -> list[int]:
        """The papers of the index that are nearest in meaning to a text."""
        with self._noted():
            if index := self._opened():
                return list(index.near(title, abstract, count))
        return []

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """MiniLM's unit vectors of papers, float32 (rows, 384); zeros for one that has none."""
        with self._noted():
            if index := self._opened():
                return index.vectors(rows)
        return np.zeros((len(rows), DIMENSIONS), np.float32)

    def covered(self) -> tuple[int, int]:
        """How many papers of the index have a vector of MiniLM, and how many there are."""
        with self._noted():
            if index := self._opened():
                return index.covered, index.count
        return 0, 0

    @staticmethod
    def _asked(index: SearchIndex, question: str) -> np.ndarray | None:
        """The vector of a question where there is anything to compare it with."""
        return vector_of_question(question) if index.covered else None

    def _opened(self) -> SearchIndex | None:
        """The latest index; None while there is none, or where it was found to be unusable."""
        folder = index_folder(self.library)
        name = stamp(folder)
        if name == self._stamp:
            return self._index
        with self._lock:
            if name != self._stamp:
                try:
                    self._index = self._read(folder) if name else None
                    self.note = ""
                    if self._problems:
                        self._problems.solved("search")
                except UnusableIndex as error:
                    self._unusable(error)
                self._stamp = name  # last: until then other threads wait
            return self._index

    def _read(self, folder: Path) -> SearchIndex:
        index = SearchIndex(folder)
        if index.change > self.library.newest_change():
            raise UnusableIndex("the search index is of other papers: thalweg papers index builds it")
        return index

    @contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except UnusableIndex as error:
            self._unusable(error)

    def _unusable(self, error: UnusableIndex) -> None:
        self._index = None
        self._note(str(error))

    def _note(self, what: str) -> None:
        self.note = what
        if self._problems:
            self._problems.report("search", what)


def _why(by_word: bool, cosine: float | None) -> str:
    reasons = ["words"] if by_word else []
    if cosine is not None:
        reasons.append(f"meaning {cosine:.2f}")
    return "; ".join(reasons)
