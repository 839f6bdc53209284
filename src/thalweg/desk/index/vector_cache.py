"""MiniLM's vectors of texts, kept from one build of the index to the next: they cost hours to make.

A file of records that only grows: the number of a text, its vector in bytes, and a check of both. A new
version of a paper is another text. Whoever is killed while adding loses the batch being added; a record that
is damaged is left out, and its text is encoded again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock, Timeout

from thalweg.papers.minilm import DIMENSIONS

__all__ = ["Busy", "VectorCache", "text_number"]

NAME = "minilm.vectors"
# Another model, another length of texts: another head, so that vectors of two kinds are never mixed.
_HEAD = b"thalweg MiniLM 1"
_RECORD = np.dtype([("number", "<u8"), ("check", "<u4"), ("vector", "i1", (DIMENSIONS,))])
_CHUNK = 20_000  # records in memory at once
_ODD = np.random.default_rng(0).integers(0, 2**31, DIMENSIONS // 4, np.uint32) * 2 + 1


def text_number(text: str) -> int:
    """A text as a number of 64 bits: of a million, two share theirs in one of thirty million libraries."""
    return int.from_bytes(blake2b(text.encode("utf8", "replace"), digest_size=8).digest(), "little")


class Busy(Exception):
    """Another process adds vectors."""


class VectorCache:
    """The vectors in ``folder``, as they are now; ``damage`` says what of them cannot be used, if any."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.damage = ""
        self._numbers, self._places = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._read()

    def __len__(self) -> int:
        """How many texts have a vector."""
        return len(self._numbers)

    def has(self, numbers: np.ndarray) -> np.ndarray:
        """Which texts, by their numbers, have a vector: bool [texts]."""
        return self._find(numbers) >= 0

    def vectors(self, numbers: np.ndarray) -> np.ndarray:
        """Vectors of texts that have one, int8 (texts, 384); their lengths differ."""
        places = self._find(numbers)
        if not len(places):
            return np.empty((0, DIMENSIONS), np.int8)
        # Mapped anew at each call, so that what was read does not stay in this process's memory.
        return np.memmap(self._path, _RECORD, "r", len(_HEAD), (int(places.max()) + 1,))["vector"][places]

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While vectors are added or pruned.

        Raises:
            Busy: another process adds some.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self._path.with_suffix(".lock"), timeout=0).acquire()
        except Timeout:
            raise Busy("papers are being encoded by another process") from None
        with lock:
            self._read()
            yield

    def add(self, numbers: np.ndarray, vectors: np.ndarray) -> None:
        """Append vectors, float32 (texts, 384), of texts that have none; on the disk when this returns.

        Whoever opens the cache next finds them. To be called within :meth:`alone`.

        Raises:
            OSError: the disk is full; all that was added before stays.
        """
        records = np.zeros(len(numbers), _RECORD)
        records["number"] = numbers
        largest = np.abs(vectors).max(-1, keepdims=True)
        records["vector"] = (vectors * (127 / np.maximum(largest, 1e-12))).round()
        records["check"] = _checks(records)
        before = len(_HEAD) + self._end * _RECORD.itemsize
        with self._path.open("r+b" if self._path.exists() else "w+b", buffering=0) as file:
            try:
                if not self._end:
                    _write(file, _HEAD)
                file.seek(before)
                file.truncate()  # what a killed process, or a damaged file, had there
                _write(file, records.tobytes())
                os.fsync(file.fileno())
            except OSError:
                file.truncate(before if self._end else 0)
                raise
        self._end += len(records)

    def keep(self, numbers: np.ndarray) -> None:
        """Forget all texts but these; where another process adds some, or the disk is full, the next time."""
        numbers = np.unique(numbers)
        new = self._path.with_suffix(".new")
        try:
            with self.alone():
                kept = numbers[self.has(numbers)]
                if len(kept) == self._end:
                    return
                with new.open("wb", buffering=0) as file:
                    _write(file, _HEAD)
                    for start in range(0, len(kept), _CHUNK):
                        records = np.zeros(len(some := kept[start : start + _CHUNK]), _RECORD)
                        records["number"], records["vector"] = some, self.vectors(some)
                        records["check"] = _checks(records)
                        _write(file, records.tobytes())
                    os.fsync(file.fileno())
                new.replace(self._path)
                self._read()
        except (OSError, Busy):
            new.unlink(missing_ok=True)

    def _read(self) -> None:
        self._end, self.damage = 0, ""  # records, sound or not, after which the next one goes
        self._numbers, self._places = np.empty(0, np.uint64), np.empty(0, np.int64)
        try:
            self._read_file()
        except FileNotFoundError:
            pass
        except OSError as error:
            self.damage = f"vectors of MiniLM cannot be read ({error.strerror})"

    def _read_file(self) -> None:
        numbers, places = [self._numbers], [self._places]
        with self._path.open("rb") as file:
            head = file.read(len(_HEAD))
            if head != _HEAD:
                self.damage = "vectors of MiniLM are damaged, or of another version" if head else ""
                return
            while len(records := np.fromfile(file, _RECORD, _CHUNK)):
                sound = np.flatnonzero(records["check"] == _checks(records))
                numbers.append(records["number"][sound])
                places.append(self._end + sound)
                self._end += len(records)
        self._numbers, first = np.unique(np.concatenate(numbers), return_index=True)
        self._places = (sound := np.concatenate(places))[first]
        if bad := self._end - len(sound):
            self.damage = f"{bad} of {self._end} vectors of MiniLM are damaged"

    def _find(self, numbers: np.ndarray) -> np.ndarray:
        """Places of records; -1 where there is none."""
        if not len(self._numbers):
            return np.full(len(numbers), -1)
        at = np.searchsorted(self._numbers, numbers).clip(max=len(self._numbers) - 1)
        return np.where(self._numbers[at] == numbers, self._places[at], -1)


def _write(file: BinaryIO, content: bytes) -> None:
    """All of it: on a disk that is almost full one call writes a part and raises nothing."""
    rest = memoryview(content)
    while rest:
        rest = rest[file.write(rest) :]


def _checks(records: np.ndarray) -> np.ndarray:
    """A sum over number and vector that every change of one word changes, uint32 [records]."""
    words = np.ascontiguousarray(records["vector"]).view(np.uint32)
    number = records["number"] * np.uint64(0x9E3779B97F4A7C15)
    return (
        (words * _ODD).sum(-1, dtype=np.uint32) + (number >> np.uint64(32)).astype(np.uint32) + np.uint32(1)
    )
