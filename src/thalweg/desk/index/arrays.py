"""Arrays on the disk that are filled a part at a time, and products with all that is in one."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["products", "reserved"]

_CHUNK = 3 << 19  # numbers that fit into a processor's cache


def reserved(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new ``.npy`` file, mapped to be written.

    Its room on the disk is taken at once: writing to a mapped file on a full disk would end the process.

    Raises:
        OSError: there is no room for it.
    """
    made = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if made.nbytes and hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return made


def products(vectors: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Every row of an int8 array times a float32 vector, float32 [rows], on all processors."""
    found, rows = np.empty(len(vectors), np.float32), _CHUNK // max(len(vector), 1)

    def part(start: int) -> None:
        some = slice(start, start + rows)
        found[some] = vectors[some].astype(np.float32) @ vector

    starts = range(0, len(found), rows)
    if len(starts) > 1:
        list(_threads().map(part, starts))
    else:
        for start in starts:
            part(start)
    return found


_pools: list[ThreadPoolExecutor] = []


def _threads() -> ThreadPoolExecutor:
    if not _pools:
        _pools.append(ThreadPoolExecutor(min(os.cpu_count() or 1, 8), "search"))
    return _pools[0]
