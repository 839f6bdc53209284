"""Two thousand made-up papers whose topics have structure, and the index over them."""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import pytest

from thalweg.desk._library_rows import Streamed as Record
from thalweg.desk.index.build import build

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks._abstracts import Generator

ROOMS = ("optim", "probe", "")


@lru_cache(maxsize=8)
def records(count: int, seed: int = 0) -> list[Record]:
    """Rows are the odd numbers from 1 on, so that a row is never a place."""
    return [
        Record(
            1 + 2 * i,
            one.title,
            one.abstract,
            one.date if i % 50 else one.date[:7],
            ROOMS[one.topic % 3],
            (f"field {one.topic // 12}", f"topic {one.topic}"),
        )
        for i, one in enumerate(Generator(seed, length=80).papers(count))
    ]


@pytest.fixture(scope="session")
def made() -> list[Record]:
    return records(2000)


@pytest.fixture(scope="session")
def generator() -> Generator:
    return Generator(0, length=80)


@pytest.fixture(scope="session")
def folder(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("index")
    assert build(path, made, change=7, rank=64) == len(made)
    return path
