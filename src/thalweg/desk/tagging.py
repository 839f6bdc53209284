"""Topics, room and findings of a paper from outside, guessed from its text: the nearest catalog papers vote.

Near is meant as in latent semantic analysis (:mod:`thalweg.papers.meaning`), times the share of the text that
the catalog has words for, so that a paper about something else is near to nothing. Thresholds were set on
catalog papers that were held out; docs/desk.md says how often they are right.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.sparse import csr_matrix

from thalweg.papers.entry import Entry, load
from thalweg.papers.meaning import MeaningIndex, stem, terms
from thalweg.papers.words import STOP_WORDS, tokens

__all__ = ["NOTHING", "Tagger", "Tags"]

VOTERS = 12
SAID = 0.2  # what it adds to the share of the votes that the text itself uses the words of the label
# Least similarity of the nearest paper, and least share of the votes for each kind of label.
NEAR, ROOM, TOPIC, FINDING = 0.15, 0.5, 0.3, 0.4
MOST_TOPICS, MOST_FINDINGS = 4, 2
UNSEEN = -1  # the column of a word that the catalog does not have
SKIPPED = -2  # a word without meaning
MOST_WORDS = 500_000  # that are remembered with their columns


@dataclass(frozen=True)
class Tags:
    """What was guessed; empty where the catalog has nothing near enough to go by."""

    topics: tuple[str, ...] = ()
    room: str = ""
    addresses: tuple[str, ...] = ()


NOTHING = Tags()


class Tagger:
    """Guesses for many texts at once, by a few products of matrices.

    Args:
        entries: the papers that vote.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.index = MeaningIndex(entries)
        columns = self.index.columns
        self.topics = _Labels([one.topics for one in entries], columns)
        self.findings = _Labels([one.addresses for one in entries], columns)
        self.rooms = _Labels([(one.room,) for one in entries], columns)
        # A word that the catalog has never seen is at least as rare as its rarest.
        self._rarity = np.append(self.index.rarity, self.index.rarity.max())
        self._places = _Places(columns)

    def __call__(self, texts: Sequence[str]) -> list[Tags]:
        """Tags of each text (title and abstract)."""
        if not texts:
            return []
        table = self.table(texts)
        return self.vote(table, table[:, :-1] @ self.index.directions @ self.index.papers.T)

    def table(self, texts: Sequence[str]) -> csr_matrix:
        """TF-IDF of the texts, (texts, terms + 1): rows of length one, unknown words in the last column."""
        places: list[int] = []
        stops = [0]
        for text in texts:
            places.extend(map(self._places.__getitem__, _words(text)))
            stops.append(len(places))
        found = np.array(places, dtype=np.int32)
        kept = found != SKIPPED
        ends = np.concatenate([[0], np.cumsum(kept)])[stops]
        width = len(self._rarity)
        found = np.where(found == UNSEEN, width - 1, found)[kept]
        counts = csr_matrix((np.ones(len(found)), found, ends), (len(texts), width))
        counts.sum_duplicates()
        strangers = counts.indices == width - 1
        # The root makes words that share a column as long as if each had its own.
        weights = np.where(strangers, np.sqrt(counts.data), 1 + np.log(counts.data))
        counts.data = weights * self._rarity[counts.indices]
        lengths = np.sqrt(counts.multiply(counts).sum(axis=1))
        return csr_matrix(counts.multiply(1 / np.maximum(lengths, 1e-12).reshape(-1, 1)))

    def vote(self, table: csr_matrix, similarity: np.ndarray) -> list[Tags]:
        """What the nearest papers say, given the cosine of every text and every paper."""
        known = table.sign()[:, :-1]
        weights = np.maximum(similarity, 0)
        if weights.shape[1] > VOTERS:
            least = np.partition(weights, -VOTERS, axis=1)[:, -VOTERS, None]
            weights = np.where(weights >= least, weights, 0)
        nearest = weights.max(axis=1)
        weights = weights**2
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        near = np.flatnonzero(nearest >= NEAR)
        found = [NOTHING] * len(nearest)
        if not len(near):
            return found
        weights, known = weights[near], known[near]
        rooms = weights @ self.rooms.of
        topics = self.topics.voted(weights, known)
        findings = self.findings.voted(weights, known)
        for i, row in enumerate(near):
            found[row] = Tags(
                self.topics.best(topics[i], TOPIC, MOST_TOPICS),
                next(iter(self.rooms.best(rooms[i], ROOM, 1)), ""),
                self.findings.best(findings[i], FINDING, MOST_FINDINGS),
            )
        return found


class _Places(dict[str, int]):
    """The column of every word seen so far, worked out once a word."""

    def __init__(self, columns: dict[str, int]) -> None:
        super().__init__()
        self._columns = columns

    def __missing__(self, word: str) -> int:
        if len(self) > MOST_WORDS:
            self.clear()
        self[word] = SKIPPED if word in STOP_WORDS else self._columns.get(stem(word), UNSEEN)
        return self[word]


class _Labels:
    """Which paper has which label, (papers, labels), and the words of each label."""

    def __init__(self, given: Sequence[Sequence[str]], columns: dict[str, int]) -> None:
        self.names = sorted({name for one in given for name in one})
        place = {name: i for i, name in enumerate(self.names)}
        self.of = np.zeros((len(given), len(self.names)))
        for row, one in enumerate(given):
            self.of[row, [place[name] for name in one]] = 1
        words = [sorted({columns[term] for term in terms(name) if term in columns}) for name in self.names]
        self._count = np.array([max(len(one), 1) for one in words])
        places = [(column, row) for row, one in enumerate(words) for column in one]
        self._words = csr_matrix(
            (np.ones(len(places)), tuple(zip(*places, strict=True)) or ((), ())), (len(columns), len(words))
        )

    def voted(self, weights: np.ndarray, known: csr_matrix) -> np.ndarray:
        """Share of the votes for each label, and something more where the text uses all of its words."""
        votes = weights @ self.of
        said = (known @ self._words).toarray() >= self._count
        return np.where(votes > 0, votes + SAID * said, 0)

    def best(self, votes: np.ndarray, least: float, most: int) -> tuple[str, ...]:
        over = np.flatnonzero(votes >= least)
        return tuple(self.names[i] for i in over[np.argsort(-votes[over], kind="stable")][:most])


def _words(text: str) -> list[str]:
    lowered = text.lower()
    return re.findall(r"[a-z0-9]+", lowered) if lowered.isascii() else tokens(text)


@lru_cache(maxsize=1)
def tagger() -> Tagger:
    """The one over the built-in catalog."""
    return Tagger(load())
