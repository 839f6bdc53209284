"""The index as a reader has it: rankings of papers by word and by meaning, and papers near another one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thalweg.desk.index.build import CURRENT, FORMAT, MANIFEST
from thalweg.desk.index.counts import count, numbers
from thalweg.desk.index.filters import Filters, Labels
from thalweg.desk.index.meaning import Meaning
from thalweg.desk.index.sentences import Sentences, in_one_measure
from thalweg.desk.index.sums import differing
from thalweg.desk.index.titles import number_of
from thalweg.desk.index.words import Words
from thalweg.papers.minilm import DIMENSIONS
from thalweg.papers.words import content_words

__all__ = ["Rankings", "SearchIndex", "UnusableIndex", "stamp"]

_SMALL = 1 << 24  # bytes of a file that is read to its end when it is opened: 10 ms
_LEAST_SCORE = 1e-6
_LEAST_SIMILAR = 0.2  # below which a paper has nothing to do with a question: latent semantic analysis
_LEAST_LIKE = 0.24  # the same by MiniLM
_LEAST_ALIKE = 0.4  # the same of two papers, whose longer texts are nearer to each other
_BESIDE = 0.5  # of the best cosine: beside a close match a distant one is noise
_READING = (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError)  # what damaged files raise


class UnusableIndex(Exception):
    """There is no index, or it is damaged; the message says which and what to do."""


class Rankings(NamedTuple):
    """Numbers of papers, best first, and the cosine of each of those found by meaning."""

    by_word: list[int]
    by_meaning: dict[int, float]


class SearchIndex:
    """The index that ``folder`` points to now; what is built later is another one.

    Raises:
        UnusableIndex: there is none, or its files are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        while True:
            self.stamp = stamp(folder)
            if not self.stamp:
                raise UnusableIndex("there is no search index yet: thalweg papers index builds it")
            try:
                with _undamaged():
                    self._open(Path(folder) / self.stamp)
                return
            except UnusableIndex:
                # A build that ended meanwhile has removed what this one was about to open.
                if stamp(folder) == self.stamp:
                    raise

    def _open(self, here: Path) -> None:
        about = json.loads((here / MANIFEST).read_text(encoding="utf8"))
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']}, this thalweg reads {FORMAT}")
        for name, size in about["files"].items():
            if (have := (here / name).stat().st_size) != size:
                raise ValueError(f"{name} has {have} of {size} bytes")
        self.size = sum(about["files"].values())  # bytes
        self._here, self._sums = here, about.get("sums", {})
        if name := differing(here, self._sums, _SMALL):
            raise ValueError(f"{name} is not what was written")
        self.count, self.last, self.change = about["papers"], about["last"], about["change"]
        self.covered, self.wants_sentences = about["covered"], about["sentences"]
        self._labels = Labels(here)
        self._words = Words(here, self.count)
        self._meaning = Meaning.open(here)
        self._sentences = Sentences(here)
        self._titles = np.load(here / "titles.npy", mmap_mode="r")

    def check(self) -> None:
        """Read every file to its end: opening reads only small ones.

        Raises:
            UnusableIndex: the files are damaged.
        """
        with _undamaged():
            if name := differing(self._here, self._sums):
                raise ValueError(f"{name} is not what was written")

    def rankings(
        self,
        question: str,
        filters: Filters | None = None,
        depth: int = 60,
        vector: np.ndarray | None = None,
    ) -> Rankings:
        """The best papers that pass the filters, ``depth`` by word and as many by meaning.

        Args:
            vector: the question's, of MiniLM, float32 [384]; without it latent semantic analysis judges all.

        Raises:
            UnusableIndex: the files are damaged.
        """
        asked = " ".join(content_words(question))
        with _undamaged():
            allowed = self._labels.allowed(filters or Filters())
            by_word = _best(self._words.scores(numbers(asked)), allowed, depth, _LEAST_SCORE)
            by_meaning = self._by_meaning(asked, vector, allowed, depth)
            return Rankings(self._rows(by_word), by_meaning)

    def near(self, title: str, abstract: str, depth: int = 10, *, without: int = -1) -> dict[int, float]:
        """Papers nearest in meaning to a text, with the cosine; ``without`` is a number to leave out.

        Raises:
            UnusableIndex: the files are damaged.
        """
        with _undamaged():
            similarity = self._similarity(title, abstract)
            close = self._with_cosines(_best(similarity, None, depth + 1, _LEAST_ALIKE), similarity)
        close.pop(without, None)
        return dict(list(close.items())[:depth])

    def vectors(self, rows: Sequence[int]) -> np.ndarray:
        """MiniLM's unit vectors of papers, float32 (rows, 384); zeros for one that has none, or is not here.

        Raises:
            UnusableIndex: the files are damaged.
        """
        with _undamaged():
            found = np.zeros((len(rows), DIMENSIONS), np.float32)
            numbers, places = np.array(rows, np.int64), np.searchsorted(self._labels.rows, rows)
            here = np.flatnonzero(np.append(self._labels.rows, -1)[places] == numbers)
            having, vectors = self._sentences.of(places[here])
            found[here[having]] = vectors
            return found

    def holders(self, stems: np.ndarray) -> np.ndarray:
        """How many papers hold each stem (:func:`thalweg.desk.index.counts.numbers`).

        Raises:
            UnusableIndex: the files are damaged.
        """
        with _undamaged():
            return self._words.holders(stems)

    def titled(self, title: str) -> list[int]:
        """Papers that have this title but for case, accents and punctuation, the newest first."""
        number = number_of(title)
        with _undamaged():
            return self._rows(np.flatnonzero(self._titles == number)[::-1]) if number else []

    def project(self, texts: Sequence[tuple[str, str]]) -> np.ndarray:
        """Unit vectors of titles with their texts, float32 (texts, rank); their cosines are of one scale.

        Raises:
            UnusableIndex: the files are damaged.
        """
        with _undamaged():
            return self._meaning.project(count(texts))

    def _by_meaning(
        self, asked: str, vector: np.ndarray | None, allowed: np.ndarray | None, depth: int
    ) -> dict[int, float]:
        """The best papers with their cosines, MiniLM's where there are vectors (:mod:`.sentences`)."""
        covered = self._sentences.places
        if vector is None or not len(covered):
            found = self._similarity("", asked)
            least = max(_LEAST_SIMILAR, _BESIDE * float(found.max(initial=0)))
            return self._with_cosines(_best(found, allowed, depth, least), found)
        found = cosines = self._sentences.similarity(vector, None if allowed is None else allowed[covered])
        highest = float(cosines.max())
        if len(covered) < self.count:
            latent = self._similarity("", asked)
            theirs = latent[covered]
            latent[covered] = -1
            closest = float(latent.max())
            others = _best(latent, allowed, depth, max(_LEAST_SIMILAR, _BESIDE * closest))
            *measured, closest = in_one_measure(np.append(latent[others], closest), theirs, cosines)
            found = np.full(self.count, -1, np.float32)
            found[covered], found[others] = cosines, measured
            highest = max(highest, closest)
        return self._with_cosines(_best(found, allowed, depth, max(_LEAST_LIKE, _BESIDE * highest)), found)

    def _similarity(self, title: str, text: str) -> np.ndarray:
        return self._meaning.similarity(self._meaning.project(count([(title, text)]))[0])

    def _rows(self, places: np.ndarray) -> list[int]:
        return self._labels.rows[places].tolist()

    def _with_cosines(self, places: np.ndarray, similarity: np.ndarray) -> dict[int, float]:
        return dict(zip(self._rows(places), similarity[places].tolist(), strict=True))


@contextmanager
def _undamaged() -> Iterator[None]:
    try:
        yield
    except _READING as error:
        what = str(error)
        if isinstance(error, OSError) and error.filename:  # readers see this: the file's name, not its place
            what = f"{Path(error.filename).name}: {error.strerror}"
        why = f"the search index is damaged ({what}): thalweg papers index builds it again"
        raise UnusableIndex(why) from None


def stamp(folder: str | Path) -> str:
    """The name of the index in use, which a rebuild changes; empty where there is none."""
    try:
        name = (Path(folder) / CURRENT).read_text(encoding="utf8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return name if name.isalnum() else ""


def _best(scores: np.ndarray, allowed: np.ndarray | None, count: int, least: float) -> np.ndarray:
    """Places of the ``count`` greatest scores of at least ``least``, greatest first, of equals the newest."""
    passing = scores >= least
    if allowed is not None:
        passing &= allowed
    found = np.flatnonzero(passing)
    values = scores[found]
    if len(found) > count:
        part = np.argpartition(values, len(values) - count)[-count:]
        found, values = found[part], values[part]
    return found[np.lexsort((-found, -values))]
