"""Build the index beside the one in use and put it in its place by renaming one small file.

Papers stream through once; what is kept of them on the way are counts on the disk, some half a kilobyte a
paper, and one block of texts in memory. A build that is killed leaves the old index as it was.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout

from thalweg.desk.index.counts import Block, count
from thalweg.desk.index.filters import LabelWriter
from thalweg.desk.index.meaning import RANK, fit, write_meaning
from thalweg.desk.index.passages import passage
from thalweg.desk.index.sentences import write_sentences
from thalweg.desk.index.sums import sums
from thalweg.desk.index.titles import number_of
from thalweg.desk.index.vector_cache import VectorCache, text_number
from thalweg.desk.index.words import vocabulary, write_words

__all__ = ["CURRENT", "FORMAT", "MANIFEST", "Record", "build"]

AT_ONCE = 10_000  # texts in a block
FORMAT = 3
CURRENT, MANIFEST = "current", "index.json"
_COUNTS = "counts"


class Record(Protocol):
    """A paper to be found: ``row`` rises from one to the next, ``day`` is a day, a month or empty."""

    @property
    def row(self) -> int: ...
    @property
    def title(self) -> str: ...
    @property
    def abstract(self) -> str: ...
    @property
    def day(self) -> str: ...
    @property
    def room(self) -> str: ...
    @property
    def topics(self) -> tuple[str, ...]: ...


def build(
    folder: str | Path,
    papers: Iterable[Record],
    *,
    change: int = 0,
    beside: Sequence[tuple[str, str]] = (),
    rank: int = RANK,
    cache: VectorCache | None = None,
    progress: Callable[[str, int], None] = lambda stage, done: None,
) -> int:
    """Index papers and give how many there were; readers go on with the old index until the new one is whole.

    Args:
        folder: made if missing; other builds there are refused meanwhile.
        change: kept with the index, to say later what it knows.
        beside: titles and texts that are not to be found but tell what words mean.
        rank: how many numbers a paper's vector has.
        cache: has vectors of MiniLM, and forgets those of texts that are not indexed any more; without it
            latent semantic analysis alone judges meaning.
        progress: told the stage and how many papers it has dealt with.

    Raises:
        ValueError: another build is under way.
        OSError: the disk is full or cannot be written; the old index stays.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        old = _current(folder)
        for left in folder.iterdir():
            if left.is_dir() and left.name != old:
                shutil.rmtree(left, ignore_errors=True)
        name = f"{time.time_ns():x}"
        new = folder / name
        (new / _COUNTS).mkdir(parents=True)
        try:
            last, texts = _written(new, papers, beside, rank, progress)
            total, covered = len(texts), write_sentences(new, texts, cache)
            shutil.rmtree(new / _COUNTS)
            sizes = {file.name: file.stat().st_size for file in sorted(new.iterdir())}
            about: dict[str, Any] = {"format": FORMAT, "papers": total, "last": last, "change": change}
            about |= {"covered": covered, "sentences": cache is not None, "files": sizes, "sums": sums(new)}
            (new / MANIFEST).write_text(json.dumps(about), encoding="utf8")
            for file in new.iterdir():
                _sync(file)
            _sync(new)
            pointer = folder / f"{CURRENT}.new"
            pointer.write_text(name, encoding="utf8")
            _sync(pointer)
            pointer.replace(folder / CURRENT)
            _sync(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if old:
            shutil.rmtree(folder / old, ignore_errors=True)  # readers that have it open keep their pages
        if cache is not None:
            cache.keep(texts)
    return total


def _written(
    new: Path,
    papers: Iterable[Record],
    beside: Sequence[tuple[str, str]],
    rank: int,
    progress: Callable[[str, int], None],
) -> tuple[int, np.ndarray]:
    """Write what is made of words; gives the last paper's number, and that of the text of each paper."""
    labels, titles, texts, last, total = LabelWriter(), array("Q"), array("Q"), 0, 0

    def counted() -> Iterator[Block]:
        nonlocal last, total
        source = iter(papers)
        while some := list(itertools.islice(source, AT_ONCE)):
            for one in some:
                if one.row <= last:
                    raise ValueError(f"rows of papers must rise, got {one.row} after {last}")
                last = one.row
                labels.add(one.row, one.day, one.room, tuple(one.topics))
                titles.append(number_of(one.title))
                texts.append(text_number(passage(one.title, one.abstract)))
            block = count([(one.title, one.abstract) for one in some])
            np.savez(
                new / _COUNTS / f"{total:012}.npz", terms=block.terms, times=block.times, ends=block.ends
            )
            total += len(some)
            progress("words", total)
            yield block

    def blocks(stage: str = "") -> Iterator[Block]:
        done = 0
        for file in sorted((new / _COUNTS).iterdir()):
            with np.load(file) as held:
                yield Block(held["terms"], held["times"], held["ends"])
                done += len(held["ends"])
            if stage:
                progress(stage, done)

    terms, holders, mean_length = vocabulary(counted())
    labels.write(new)
    np.save(new / "titles.npy", np.array(titles, np.uint64))
    write_words(new, lambda: blocks("lists"), terms, holders, mean_length)
    more = count(beside)
    terms, place = np.unique(np.concatenate([terms, more.terms]), return_inverse=True)
    holders = np.bincount(place, np.concatenate([holders, np.ones(len(more.terms))]), len(terms))
    fitted = fit(itertools.chain([more], blocks()), total + len(beside), terms, holders, rank)
    write_meaning(new, lambda: blocks("vectors"), total, fitted)
    return last, np.array(texts, np.uint64)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        lock = FileLock(folder / "lock", timeout=0).acquire()
    except Timeout:
        raise ValueError(f"the index in {folder} is being built by another process") from None
    with lock:
        yield


def _current(folder: Path) -> str:
    try:
        return (folder / CURRENT).read_text(encoding="utf8").strip()
    except OSError:
        return ""


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
