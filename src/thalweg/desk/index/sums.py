"""Checksums of the files of an index: damage that leaves their size as it was."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["differing", "sums"]

_AT_ONCE = 1 << 20  # bytes


def sums(folder: Path) -> dict[str, int]:
    """CRC-32 of every file in a folder, by name."""
    return {file.name: _sum(file) for file in sorted(folder.iterdir())}


def differing(folder: Path, known: Mapping[str, int], largest: int | None = None) -> str:
    """The first file that is not what it was, or an empty text.

    Args:
        largest: bytes of the largest file that is read.
    """
    for name, value in known.items():
        read = largest is None or (folder / name).stat().st_size <= largest
        if read and _sum(folder / name) != value:
            return name
    return ""


def _sum(file: Path) -> int:
    found = 0
    with file.open("rb") as raw:
        while part := raw.read(_AT_ONCE):
            found = zlib.crc32(part, found)
    return found
