"""Search by meaning where papers have vectors of MiniLM: all of them, some, or none.

Papers with a vector are compared exactly. Those without are judged by latent semantic analysis, whose cosines
are another measure: its k-th cosine among papers with a vector counts as MiniLM's k-th. So both are one list.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from thalweg.desk.index.arrays import products
from thalweg.desk.index.vector_cache import VectorCache
from thalweg.papers.minilm import DIMENSIONS

__all__ = ["Sentences", "in_one_measure", "write_sentences"]

_CHUNK = 20_000  # papers whose vectors are in memory while they are written


class Sentences:
    """Vectors of papers, mapped into memory; ``places`` says which papers have one, rising, int64."""

    def __init__(self, folder: Path) -> None:
        self.places: np.ndarray = np.load(folder / "covered.npy")
        self._scales = np.load(folder / "scales.npy")
        self._vectors = np.load(folder / "minilm.npy", mmap_mode="r")
        if not len(self.places) == len(self._scales) == len(self._vectors):
            raise ValueError("as many places as vectors are needed")

    def similarity(self, vector: np.ndarray) -> np.ndarray:
        """Cosine of a unit vector, float32 [384], with each of them, float32 [places]."""
        return products(self._vectors, vector.astype(np.float32)) * self._scales

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
    lengths = [np.empty(0, np.float32)]
    with (folder / "minilm.npy").open("wb") as file:
        shape = (len(covered), DIMENSIONS)
        np.lib.format.write_array_header_1_0(file, {"descr": "|i1", "fortran_order": False, "shape": shape})
        for start in range(0, len(covered), _CHUNK):
            assert cache is not None
            vectors = cache.vectors(numbers[covered[start : start + _CHUNK]])
            lengths.append(np.linalg.norm(vectors.astype(np.float32), axis=1))
            file.write(vectors.tobytes())
    np.save(folder / "covered.npy", covered)
    np.save(folder / "scales.npy", 1 / np.maximum(np.concatenate(lengths), 1e-12))
    return len(covered)


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
