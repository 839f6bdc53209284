"""Vectors of MiniLM for imported papers that have none: the newest first, for as long as is allowed."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from thalweg.desk.imported_search import index_folder
from thalweg.desk.index.passages import Encode, encoder_for, passage
from thalweg.desk.index.vector_cache import Busy, VectorCache, text_number
from thalweg.desk.library import Library

__all__ = ["BATCH", "CannotEncode", "Encoded", "encode_missing"]

BATCH = 128  # papers, about a second; what a killed process may lose


class CannotEncode(ValueError):
    """The model cannot be read, or another process is at it; the message says which."""


class Encoded(NamedTuple):
    """How many papers got a vector, how many still have none, and the seconds of a paper (0 if none did)."""

    done: int
    left: int
    each: float = 0.0


def encode_missing(
    library: Library,
    model: Path,
    seconds: float | None = None,
    *,
    say: Callable[[str], None] = lambda damage: None,
    progress: Callable[[Encoded], None] = lambda so_far: None,
    encoder: Callable[[int, Path], AbstractContextManager[Encode]] = encoder_for,
) -> Encoded:
    """Encode papers until all have a vector or the time is over; every batch is kept at once.

    Args:
        model: the folder of :func:`thalweg.papers.minilm.model_folder`.
        seconds: after which no batch is begun; None for no end.
        say: told of vectors that were damaged, which are made again.
        progress: told after every batch.
        encoder: for so many texts, by the model in a folder.

    Raises:
        CannotEncode: the model's files are not what they should be, or another process is encoding.
        OSError: the disk is full; what was encoded before is kept.
    """
    cache = VectorCache(index_folder(library))
    with _alone(cache):
        if cache.damage:
            say(f"{cache.damage}, and are made again")
        missing = _missing(library, cache)
        so_far = Encoded(0, len(missing))
        if not len(missing):
            return so_far
        with ExitStack() as stack:
            try:
                encode = stack.enter_context(encoder(len(missing), model))
            except Exception as error:  # whatever is wrong with an optional model
                raise CannotEncode(f"MiniLM cannot be read: {error}") from None
            start = time.perf_counter()
            for first in range(0, len(missing), BATCH):
                rows = missing[first : first + BATCH].tolist()
                # Of the text as it is now: a newer version may have come meanwhile.
                texts = [passage(one.title, one.summary) for one in library.by_rowid(rows)]
                cache.add(np.array([text_number(one) for one in texts], np.uint64), encode(texts))
                spent, done = time.perf_counter() - start, first + len(rows)
                so_far = Encoded(done, len(missing) - done, spent / done)
                progress(so_far)
                if seconds is not None and spent >= seconds:
                    break
        return so_far


@contextmanager
def _alone(cache: VectorCache) -> Iterator[None]:
    try:
        with cache.alone():
            yield
    except Busy as error:
        raise CannotEncode(str(error)) from None


def _missing(library: Library, cache: VectorCache) -> np.ndarray:
    """Numbers of papers whose text has no vector, each text once, the newest paper first."""
    rows, days, texts = array("q"), array("q"), array("Q")
    for one in library.stream():
        rows.append(one.row)
        days.append(int(one.day.replace("-", "").ljust(8, "0")) if one.day[:4].isdigit() else 0)
        texts.append(text_number(passage(one.title, one.abstract)))
    numbers = np.array(texts, np.uint64)
    without = np.flatnonzero(~cache.has(numbers))
    order = without[np.lexsort((np.array(rows)[without], np.array(days)[without]))[::-1]]
    _, first = np.unique(numbers[order], return_index=True)
    return np.array(rows, np.int64)[order[np.sort(first)]]
