"""Texts as counts of word stems, each stem a 32-bit number: what search by word and by meaning both work on.

The number is the stem's CRC-32, so nothing has to remember the vocabulary: of a million stems about a hundred
share their number with another.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from thalweg.papers.meaning import stem
from thalweg.papers.words import STOP_WORDS, tokens

__all__ = ["Block", "count", "numbers"]

TITLE = 2  # how often a word of the title counts
_STOP = -1
_MOST_REMEMBERED = 300_000  # words; their numbers are worked out once each
_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Block:
    """Counts of some texts one after another: text ``i`` has ``terms[ends[i - 1]:ends[i]]``, in rising order.

    ``terms`` is uint32, ``times`` uint8 (255 stands for more), ``ends`` int64.
    """

    terms: np.ndarray
    times: np.ndarray
    ends: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """How many different stems each text has."""
        return np.diff(self.ends, prepend=0)

    @property
    def lengths(self) -> np.ndarray:
        """How many words that count each text has."""
        total = np.concatenate([[0], np.cumsum(self.times, dtype=np.int64)])
        return np.diff(total[self.ends], prepend=0)


class _Numbers(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_REMEMBERED:
            self.clear()
        self[word] = _STOP if word in STOP_WORDS else zlib.crc32(stem(word).encode())
        return self[word]


_numbers = _Numbers()


def numbers(text: str) -> list[int]:
    """The stems of the words of ``text`` that carry meaning, in their order."""
    return [found for found in map(_numbers.__getitem__, _words(text)) if found != _STOP]


def count(texts: Sequence[tuple[str, str]]) -> Block:
    """Counts of texts, each a title and an abstract."""
    found = [numbers(title) * TITLE + numbers(abstract) for title, abstract in texts]
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    stems = np.fromiter(chain.from_iterable(found), np.uint64, int(lengths.sum()))
    owners = np.repeat(np.arange(len(found), dtype=np.uint64), lengths)
    both, times = np.unique(owners << np.uint64(32) | stems, return_counts=True)
    ends = np.searchsorted(both, np.arange(1, len(found) + 1, dtype=np.uint64) << np.uint64(32))
    return Block(both.astype(np.uint32), times.clip(max=255).astype(np.uint8), ends)


def _words(text: str) -> list[str]:
    lowered = text.lower()
    return _WORDS.findall(lowered) if lowered.isascii() else tokens(text)
