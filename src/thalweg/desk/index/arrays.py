"""Arrays on the disk that are filled a part at a time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["reserved"]


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
