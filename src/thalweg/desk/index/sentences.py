"""Search by meaning where papers have vectors of MiniLM: all of them, some, or none.

Papers with a vector are compared exactly. Those without are judged by latent semantic analysis, whose cosines
are another measure: its k-th cosine among papers with a vector counts as MiniLM's k-th. So both are one list.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from thalweg.desk.index.arrays import products
from thalweg.desk.index.vector_cache import VectorCache
from thalweg.papers.minilm import DIMENSIONS

__all__ = ["Sentences", "in_one_measure", "write_sentences"]

_CHUNK = 20_000  # papers whose vectors are in memory while they are written
# Up to so many vectors are compared one and all. Of more, the part in the strongest directions of all of them
# is compared, and then the best by that are, exactly: of a million in a third of the time.
_FEW = 100_000
_STRONGEST, _EXACTLY = 96, 8_000


class Sentences:
    """Vectors of papers, mapped into memory; ``places`` says which papers have one, rising, int64."""

    def __init__(self, folder: Path) -> None:
        self.places: np.ndarray = np.load(folder / "covered.npy")
        self._scales = np.load(folder / "scales.npy")
        self._vectors = np.load(folder / "minilm.npy", mmap_mode="r")
        self._turn = np.load(folder / "turn.npy")
        self._parts = np.load(folder / "parts.npy", mmap_mode="r")
        if not len(self.places) == len(self._scales) == len(self._vectors):
            raise ValueError("as many places as vectors are needed")
        if len(self._parts) not in (0, len(self.places)):
            raise ValueError("as many parts as vectors are needed")

    def similarity(self, vector: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
        """Cosine of a unit vector, float32 [384], with each of them, float32 [places].

        Args:
            allowed: papers that may be found, bool [places]; of very many, their best are exact as well.
        """
        vector = vector.astype(np.float32)
        if not len(self._parts):
            return products(self._vectors, vector) * self._scales
        found = products(self._parts, vector @ self._turn / 127)
        best = _greatest(found, _EXACTLY)
        if allowed is not None:
            passing = np.flatnonzero(allowed)
            best = np.union1d(best, passing[_greatest(found[passing], _EXACTLY)])
        best.sort()
        found[best] = self._vectors[best].astype(np.float32) @ vector * self._scales[best]
        return found

    def of(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these papers have a vector, bool [papers], and the unit vectors of those, float32."""
        if not len(self.places):
            return np.zeros(len(places), bool), np.empty((0, DIMENSIONS), np.float32)
        at = np.searchsorted(self.places, places).clip(max=len(self.places) - 1)
        having = self.places[at] == places
        return having, self._vectors[at[having]].astype(np.float32) * self._scales[at[having], None]


def write_sentences(folder: Path, numbers: np.ndarray, cache: VectorCache | None) -> int:
    """Write the vectors that the cache has of the texts with these numbers; how many it was.

    Raises:
        OSError: the disk is full.
    """
    covered = np.flatnonzero(cache.has(numbers)) if cache else np.empty(0, np.int64)

    def unit(some: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert cache is not None
        vectors = cache.vectors(numbers[some])
        scales = 1 / np.maximum(np.linalg.norm(vectors.astype(np.float32), axis=1), 1e-12)
        return vectors, scales, vectors * scales[:, None]

    turn = np.empty((DIMENSIONS, 0), np.float32)
    if len(covered) > _FEW:
        sample = unit(covered[:: -(-len(covered) // _CHUNK)])[2]
        turn = np.linalg.eigh(sample.T @ sample)[1][:, -_STRONGEST:].astype(np.float32)
    scales = [np.empty(0, np.float32)]
    with (
        _rows(folder / "minilm.npy", len(covered), DIMENSIONS) as whole,
        _rows(folder / "parts.npy", len(covered) if turn.size else 0, turn.shape[1]) as parts,
    ):
        for start in range(0, len(covered), _CHUNK):
            vectors, scale, directions = unit(covered[start : start + _CHUNK])
            scales.append(scale)
            whole.write(vectors.tobytes())
            parts.write((127 * directions @ turn).round().astype(np.int8).tobytes())
    np.save(folder / "turn.npy", turn)
    np.save(folder / "covered.npy", covered)
    np.save(folder / "scales.npy", np.concatenate(scales))
    return len(covered)


@contextmanager
def _rows(path: Path, count: int, width: int) -> Iterator[BinaryIO]:
    """An ``.npy`` file of int8 to which rows are written; unlike a mapped one, it stays out of memory."""
    with path.open("wb") as file:
        about = {"descr": "|i1", "fortran_order": False, "shape": (count, width)}
        np.lib.format.write_array_header_1_0(file, about)
        yield file


def _greatest(values: np.ndarray, count: int) -> np.ndarray:
    """Places of the greatest values, in any order."""
    return np.argpartition(values, -count)[-count:] if len(values) > count else np.arange(len(values))


def in_one_measure(asked: np.ndarray, latent: np.ndarray, cosines: np.ndarray) -> np.ndarray:
    """Cosines of latent semantic analysis as cosines of MiniLM, for papers that have no vector of it.

    Of the papers that have both, the k-th by one measure stands for the k-th by the other. Between two of
    them the line is straight, and beyond the best one both rise alike.

    Args:
        asked: by latent semantic analysis, of papers without a vector.
        latent, cosines: by either measure, of at least one paper with a vector, in the same order.
    """
    # Only those at least as good as the worst that is asked for, and the next one below, have to be in order.
    count = min(int((latent >= asked.min(initial=1)).sum()) + 1, len(latent))
    theirs, ours = (np.sort(np.partition(one, -count)[-count:]) for one in (latent, cosines))
    return np.minimum(np.interp(asked, theirs, ours) + np.maximum(asked - theirs[-1], 0), 1)
