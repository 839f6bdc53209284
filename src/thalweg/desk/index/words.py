"""Search by word over a million texts: BM25 (Robertson and Zaragoza, 2009) worked out beforehand.

For every stem the texts that hold it, and what it is worth in each, stand side by side. A question adds up
a few of these lists, so that a word in half of all texts costs two milliseconds; SQLite's full-text index,
which ranks a match at a time, takes three hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from thalweg.desk.index.arrays import reserved
from thalweg.desk.index.counts import Block

__all__ = ["Words", "vocabulary", "write_words"]

FILES = ("terms", "starts", "holders", "worths")
_SATURATION, _LENGTH = 1.2, 0.75  # k1 and b of BM25
_LARGEST = _SATURATION + 1
_STEPS = 255  # worths are kept to one part in 255


def vocabulary(blocks: Iterable[Block]) -> tuple[np.ndarray, np.ndarray, float]:
    """Every stem in rising order, the number of texts that hold it, and the mean length of a text."""
    terms, holders = np.empty(0, np.uint32), np.empty(0, np.int64)
    words = texts = 0
    for block in blocks:
        new, counts = np.unique(block.terms, return_counts=True)
        terms, place = np.unique(np.concatenate([terms, new]), return_inverse=True)
        holders = np.bincount(place, np.concatenate([holders, counts]), len(terms)).astype(np.int64)
        words += int(block.lengths.sum())
        texts += len(block.ends)
    return terms, holders, words / max(texts, 1)


def write_words(
    folder: Path,
    blocks: Callable[[], Iterable[Block]],
    terms: np.ndarray,
    holders: np.ndarray,
    mean_length: float,
) -> None:
    """Write the lists of every stem, one block of texts in memory at a time."""
    starts = np.concatenate([[0], np.cumsum(holders)])
    np.save(folder / "terms.npy", terms)
    np.save(folder / "starts.npy", starts)
    shape = (int(starts[-1]),)
    who = reserved(folder / "holders.npy", np.uint32, shape)
    worth = reserved(folder / "worths.npy", np.uint8, shape)
    free, first = starts[:-1].copy(), 0
    for block in blocks():
        texts = np.repeat(np.arange(len(block.ends)), block.sizes)
        times = block.times.astype(np.float32)
        relative = 1 - _LENGTH + _LENGTH * block.lengths / max(mean_length, 1)
        value = times * _LARGEST / (times + _SATURATION * relative[texts])
        order = np.argsort(block.terms, kind="stable")
        new, begin, counts = np.unique(block.terms[order], return_index=True, return_counts=True)
        column = np.searchsorted(terms, new)
        to = np.arange(len(order)) + np.repeat(free[column] - begin, counts)
        who[to] = first + texts[order]
        # Never zero: a text that holds a word is found by it.
        worth[to] = np.maximum(value[order] * (_STEPS / _LARGEST), 1).round()
        free[column] += counts
        first += len(block.ends)
    who.flush()
    worth.flush()


class Words:
    """The lists that :func:`write_words` wrote, mapped into memory.

    Args:
        count: how many texts there are.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self._count = count
        self._terms, self._starts = (np.load(folder / f"{name}.npy") for name in FILES[:2])
        self._holders, self._worths = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES[2:])

    def holders(self, terms: np.ndarray) -> np.ndarray:
        """How many texts hold each stem."""
        if not len(self._terms):
            return np.zeros(len(terms), np.int64)
        place = np.searchsorted(self._terms, terms).clip(max=len(self._terms) - 1)
        return np.where(self._terms[place] == terms, self._starts[place + 1] - self._starts[place], 0)

    def rarity(self, terms: np.ndarray) -> np.ndarray:
        """The weight of each stem in a question; zero for one that no text holds."""
        held = self.holders(terms)
        return np.where(held, np.log1p((self._count - held + 0.5) / (held + 0.5)), 0.0)

    def scores(self, question: Sequence[int]) -> np.ndarray:
        """BM25 of every text, float32 [count]; zero where it holds no word of the question."""
        total = np.zeros(self._count, np.float32)
        terms = np.unique(np.array(question, np.uint32))
        for term, rarity in zip(terms, self.rarity(terms), strict=True):
            if rarity:
                place = int(np.searchsorted(self._terms, term))
                some = slice(self._starts[place], self._starts[place + 1])
                step = np.float32(rarity * _LARGEST / _STEPS)
                total[self._holders[some]] += step * self._worths[some]
        return total
