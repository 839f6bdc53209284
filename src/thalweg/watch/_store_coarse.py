"""The extremes of every stretch of a series, kept as readings come: what curves of few points are made of.

A stretch of 16 steps is kept as one row, and so is one of 256, of 4096 and of 65 536: what a plot needs is
then at most 16 rows for each of its own stretches, however long the run is.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import pairwise

from thalweg.watch._store_schema import WIDTHS, summarise

UPSERT = """insert into coarse values (?, ?, ?, ?, ?, ?, ?) on conflict (series, width, bucket) do update set
    low_step = case when excluded.low < low then excluded.low_step else low_step end,
    low = min(low, excluded.low),
    high_step = case when excluded.high > high then excluded.high_step else high_step end,
    high = max(high, excluded.high)"""

Ends = tuple[float, int, float, int]
Stretches = dict[tuple[int, int], Ends]


def add(db: sqlite3.Connection, rows: Iterable[tuple[int, int, float]]) -> None:
    """Enter (series, step, value) of new readings; within their transaction."""
    found: Stretches = {}
    for series, step, value in rows:
        if math.isfinite(value):
            _widen(found, (series, step // WIDTHS[0]), (value, step, value, step))
    _enter(db, WIDTHS[0], found)
    for finer, width in pairwise(WIDTHS):
        coarser: Stretches = {}
        for (series, bucket), ends in found.items():
            _widen(coarser, (series, bucket * finer // width), ends)
        _enter(db, width, coarser)
        found = coarser


def cut(db: sqlite3.Connection, series: Sequence[int], step: int) -> None:
    """Forget what lay behind ``step``, which the readings have lost already; within a transaction."""
    marks = _marks(series)
    for finer, width in pairwise((1, *WIDTHS)):
        whole = (step + 1) // width
        db.execute(
            f"delete from coarse where series in ({marks}) and width = ? and bucket >= ?",
            (*series, width, whole),
        )
        # What is left of the stretch that was cut in two.
        where = f"and series in ({marks}) and {'step' if finer == 1 else 'bucket'} >= ?"
        summarise(db, width, finer, where, (*series, whole * width // finer))


def _widen(stretches: Stretches, key: tuple[int, int], ends: Ends) -> None:
    known = stretches.get(key)
    if known is None:
        stretches[key] = ends
        return
    if known[0] < ends[0] and ends[2] <= known[2]:
        return
    low, high = min(known[:2], ends[:2]), max(known[2:], ends[2:], key=lambda end: end[0])
    stretches[key] = (*low, *high)


def _enter(db: sqlite3.Connection, width: int, found: Stretches) -> None:
    db.executemany(UPSERT, [(series, width, bucket, *ends) for (series, bucket), ends in found.items()])


def _marks(series: Sequence[int]) -> str:
    return ", ".join("?" * len(series))
