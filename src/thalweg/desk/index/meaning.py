"""Search by meaning over a million texts: latent semantic analysis, fitted on a sample.

(Deerwester et al., 1990.) The strongest directions of a sample's TF-IDF are found once; every text is then
projected on them and kept as bytes. A question is compared with all of them, exactly: a hundred million
products take twenty milliseconds, and no list of nearest cells has to be trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array, vstack

from thalweg.desk.index.arrays import products, reserved
from thalweg.desk.index.counts import Block

__all__ = ["Meaning", "fit", "write_meaning"]

RANK = 96
SAMPLE = 40_000  # texts from which the directions are learned
_MOST_TERMS = 100_000
_RAREST, _COMMONEST = 5, 0.3  # among many, a stem in fewer texts or a larger share of them says nothing
_SMALL, _TINY = 20_000, 500  # up to here no stem is too common (its rarity says so), or hardly one too rare
_TEXTS = 6  # at least, for every direction: with as many as texts, words would mean only themselves
_SPARE, _ITERATIONS = 16, 2  # directions beyond those that are kept, and rounds, of the fit


class Meaning:
    """Directions and the vectors of texts, mapped into memory.

    Args:
        terms: stems that have a direction, uint32, rising.
        weights: ``directions`` times the rarity of each stem, float32 (terms, rank).
        vectors: of the texts, int8 (texts, rank); None while they are being written.
    """

    def __init__(self, terms: np.ndarray, weights: np.ndarray, vectors: np.ndarray | None = None) -> None:
        self.terms, self.weights, self.vectors = terms, weights, vectors

    @classmethod
    def open(cls, folder: Path) -> Meaning:
        terms = np.load(folder / "known.npy")
        weights = np.load(folder / "directions.npy", mmap_mode="r")
        return cls(terms, weights, np.load(folder / "vectors.npy", mmap_mode="r"))

    def project(self, block: Block) -> np.ndarray:
        """Unit vectors of texts, float32 (texts, rank); zero for one of which no stem is known."""
        return _unit(_table(block, self.terms) @ self.weights)

    def similarity(self, vector: np.ndarray) -> np.ndarray:
        """Cosine of a unit vector with every text's, float32 [texts]."""
        assert self.vectors is not None
        return products(self.vectors, (vector / 127).astype(np.float32))


def fit(
    blocks: Iterable[Block], texts: int, terms: np.ndarray, holders: np.ndarray, rank: int = RANK
) -> Meaning:
    """Learn the directions from ``SAMPLE`` of the texts, evenly spread over all of them."""
    # A library of one subject must not lose the words of the subject, nor a small one most of its words.
    rarest = min(_RAREST, 1 + texts // _TINY)
    fitting = np.flatnonzero((holders >= rarest) & (holders <= texts * (_COMMONEST if texts > _SMALL else 1)))
    if len(fitting) > _MOST_TERMS:
        fitting = np.sort(fitting[np.argsort(-holders[fitting], kind="stable")[:_MOST_TERMS]])
    known, rarity = terms[fitting], np.log((1 + texts) / (1 + holders[fitting])) + 1
    step, first, parts = max(-(-texts // SAMPLE), 1), 0, []
    for block in blocks:
        table = _table(block, known)
        parts.append(table[(-first) % step :: step])
        first += len(block.ends)
    if not parts or not len(known):
        return Meaning(known, np.zeros((len(known), 1), np.float32))
    table = vstack(parts, format="csr")
    table.data *= rarity[table.indices].astype(np.float32)
    lengths = np.sqrt(table.multiply(table).sum(axis=1))
    table.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(table.indptr))
    rank = min(rank, max(table.shape[0] // _TEXTS, 2))
    return Meaning(known, (rarity[:, None] * _directions(table, rank)).astype(np.float32))


def write_meaning(folder: Path, blocks: Callable[[], Iterable[Block]], texts: int, fitted: Meaning) -> None:
    """Write the directions and the vector of every text, one block in memory at a time."""
    np.save(folder / "known.npy", fitted.terms)
    np.save(folder / "directions.npy", fitted.weights)
    shape = (texts, fitted.weights.shape[1])
    vectors = reserved(folder / "vectors.npy", np.int8, shape)
    first = 0
    for block in blocks():
        some = slice(first, first + len(block.ends))
        vectors[some] = (127 * fitted.project(block)).round()
        first = some.stop
    vectors.flush()


def _directions(table: csr_array, rank: int) -> np.ndarray:
    """The strongest right singular vectors, (columns, rank) or fewer, from a random start.

    Subspace iteration (Halko, Martinsson and Tropp, 2011): far fewer passes over the table than Lanczos needs
    where the singular values are as even as those of text.
    """
    wide = min(rank + _SPARE, *table.shape)
    found = np.random.default_rng(0).standard_normal((table.shape[1], wide)).astype(np.float32)
    for _ in range(_ITERATIONS):
        found = np.linalg.qr(table.T @ np.linalg.qr(table @ found)[0])[0]
    values, turn = np.linalg.eigh((image := table @ found).T @ image)
    kept = [i for i in np.argsort(-values)[:rank] if values[i] > 1e-6 * values[-1]]
    return found @ turn[:, kept]


def _table(block: Block, known: np.ndarray) -> csr_array:
    """How much each text says each known stem: 1 + log of the times, float32 (texts, known)."""
    place = np.searchsorted(known, block.terms).clip(max=max(len(known) - 1, 0))
    kept = known[place] == block.terms if len(known) else np.zeros(len(place), bool)
    ends = np.concatenate([[0], np.cumsum(kept)])[np.concatenate([[0], block.ends])]
    said = 1 + np.log(block.times[kept].astype(np.float32))
    return csr_array((said, place[kept], ends), (len(block.ends), len(known)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
