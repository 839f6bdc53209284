"""Curves of few points from many readings: the extremes of every stretch, kept as readings come.

A stretch of 16 steps is kept as one row, and so is one of 256, of 4096 and of 65 536: what a plot needs is
then at most 16 rows for each of its own stretches, however long the run is.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import pairwise

from thalweg.watch._store_schema import FINITE, WIDTHS, summarise

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


def extremes(
    db: sqlite3.Connection, series: Sequence[int], points: int, kept: bool
) -> list[tuple[int, float]]:
    """At most ``points`` (step, value) in order: least and greatest of evenly wide stretches, first and last.

    Args:
        kept: whether there is a coarse table; without one every reading of the series is looked at.
    """
    marks = _marks(series)
    mine = f"from readings where series in ({marks}) and {FINITE}"
    its = f"select step, value from readings where series = ? and {FINITE} order by step"
    few = db.execute(f"select step, value {mine} limit ?", (*series, points + 1)).fetchall()
    if len(few) <= points:
        return sorted(few)
    ends = [db.execute(f"{its} {way} limit 1", (one,)) for one in series for way in ("asc", "desc")]
    edge = sorted(row for found in ends for row in found)
    first, last = edge[0], edge[-1]
    # Two points a stretch, two for the ends, and one stretch more since they are counted from step 0.
    width = -(-(last[0] - first[0] + 1) // (points // 2 - 2))
    finest = max((one for one in WIDTHS if one <= width and kept), default=1)
    found = {first, last}
    for low, order in (("low", "min"), ("high", "max")):
        if finest == 1:
            picked, bucket, source = f"step, {order}(value)", "step", mine
        else:
            picked, bucket = f"{low}_step, {order}({low})", "bucket"
            source = f"from coarse where series in ({marks}) and width = {finest}"
        query = f"select {picked} {source} group by {bucket} / {-(-width // finest)}"
        found.update(db.execute(query, series))
    return sorted(found)


def _widen(stretches: Stretches, key: tuple[int, int], ends: Ends) -> None:
    known = stretches.get(key)
    if known is None:
        stretches[key] = ends
        return
    low, high = min(known[:2], ends[:2]), max(known[2:], ends[2:], key=lambda end: end[0])
    stretches[key] = (*low, *high)


def _enter(db: sqlite3.Connection, width: int, found: Stretches) -> None:
    db.executemany(UPSERT, [(series, width, bucket, *ends) for (series, bucket), ends in found.items()])


def _marks(series: Sequence[int]) -> str:
    return ", ".join("?" * len(series))
