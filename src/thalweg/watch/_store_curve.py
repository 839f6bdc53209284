"""Curves of few points, of a whole series or a window of it: extremes of even stretches, ends and gaps."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from itertools import pairwise

from thalweg.watch._store_schema import FINITE, GAP, WIDTHS

Point = tuple[int, float]
LAST = 2**62  # behind every step
PIECES = 4  # of a stretch that is sampled


def extremes(
    db: sqlite3.Connection, series: Sequence[int], points: int, kept: bool, low: int = 0, high: int = LAST
) -> list[Point]:
    """At most ``points`` (step, value) in order: least and greatest of evenly wide stretches, first and last.

    Args:
        kept: whether there is a coarse table; without one every reading of the series is looked at.
        low, high: first and last step of the window.
    """
    ends = [_end(db, one, low, high, way, kept) for one in series for way in ("asc", "desc")]
    edge = [point for point in ends if point is not None]
    if not edge:
        return []
    first, last = min(edge), max(edge)
    low, high = first[0], last[0]
    mine = f"series in ({_marks(series)}) and {FINITE} and step between ? and ?"
    few = db.execute(
        f"select step, value from readings where {mine} limit ?", (*series, low, high, points + 1)
    ).fetchall()
    if len(few) <= points:
        return sorted(few)
    # Two points a stretch, two for the ends, and one stretch more since they are counted from step 0.
    width = -(-(last[0] - first[0] + 1) // (points // 2 - 2))
    finest = max((one for one in WIDTHS if one <= width and kept), default=1)
    width = -(-width // finest) * finest
    # Stretches of the coarse table that lie in the window as a whole; what is beside them is looked at apart.
    begin, end = -(-first[0] // finest), (last[0] + 1) // finest
    found = {first, last}
    stretches: dict[int, list[Point]] = {}
    for kind, order in (("low", "min"), ("high", "max")):
        if finest == 1:
            query = f"select step, {order}(value) from readings where {mine} group by step / {width}"
            found.update(db.execute(query, (*series, low, high)))
            continue
        query = (
            f"select {kind}_step, {order}({kind}) from coarse where series in ({_marks(series)}) "
            f"and width = ? and bucket between ? and ? group by bucket / ?"
        )
        for point in db.execute(query, (*series, finest, begin, end - 1, width // finest)):
            stretches.setdefault(point[0] // width, []).append(point)
    if finest > 1:
        finer = tuple(one for one in WIDTHS if one < finest)
        beside = _ends(db, series, first[0], begin * finest - 1, finer)
        for point in beside + _ends(db, series, end * finest, last[0], finer):
            stretches.setdefault(point[0] // width, []).append(point)
    for those in stretches.values():
        found |= {min(those, key=lambda point: point[1]), max(those, key=lambda point: point[1])}
    return sorted(found)


def _end(db: sqlite3.Connection, series: int, low: int, high: int, way: str, kept: bool) -> Point | None:
    """The first or last reading of a window that is finite.

    Found through the coarse table, which knows nothing else: a run that broke may go on for long.
    """
    query = (
        f"select step, value from readings where series = ? and {FINITE} and step between ? and ? "
        f"order by step {way} limit 1"
    )
    if not kept:
        return db.execute(query, (series, low, high)).fetchone()
    width = WIDTHS[0]
    buckets = db.execute(
        f"select bucket from coarse where series = ? and width = ? and bucket between ? and ? "
        f"order by bucket {way}",
        (series, width, low // width, high // width),
    )
    # Only a stretch that is cut by the window's edge can hold none, so that the second has one.
    for (bucket,) in buckets:
        inside = max(low, bucket * width), min(high, (bucket + 1) * width - 1)
        if found := db.execute(query, (series, *inside)).fetchone():
            return found
    return None


def gaps(
    db: sqlite3.Connection, series: Sequence[int], points: int, low: int = 0, high: int = LAST
) -> list[int]:
    """Steps whose value is not finite, one in each stretch that has any; at most ``points``.

    A store that was never written by a thalweg that knows of gaps has no index of them, and none are given.
    """
    if not db.execute("select 1 from sqlite_master where name = 'gaps'").fetchone():
        return []
    query = f"select step from readings where series = ? and {GAP} and step between ? and ? order by step"
    found: set[int] = set()
    for one in series:
        ends = [db.execute(f"{query} {way} limit 1", (one, low, high)).fetchone() for way in ("asc", "desc")]
        if ends[0] is None:
            continue
        step, last = ends[0][0], ends[1][0]
        width = -(-(last - step + 1) // points)
        # From one stretch to the next through the index: a run that stays broken costs no more than this.
        while step is not None and len(found) < points:
            found.add(step)
            behind = (step // width + 1) * width
            (step,) = db.execute(f"{query} limit 1", (one, behind, high)).fetchone() or (None,)
    return sorted(found)


def samples(
    db: sqlite3.Connection, series: Sequence[int], edges: Sequence[float], most: int
) -> list[list[float]]:
    """Finite values of the steps behind each of ``edges`` up to the next: all, or about ``most`` of them.

    Not the extremes, of which no mean or median can be taken, but the first ones of each quarter.
    """
    query = (
        f"select value from readings where series = ? and {FINITE} and step between ? and ? "
        "order by step limit ?"
    )
    found = []
    for low, high in pairwise(edges):
        cuts = [math.floor(low + (high - low) * piece / PIECES) for piece in range(PIECES + 1)]
        found.append(
            [
                value
                for begin, end in pairwise(cuts)
                for one in series
                for (value,) in db.execute(query, (one, begin + 1, end, -(-most // PIECES)))
            ]
        )
    return found


def _ends(
    db: sqlite3.Connection, series: Sequence[int], a: int, b: int, widths: Sequence[int]
) -> list[Point]:
    """Points among which are the least and the greatest of steps ``a`` to ``b``, both included."""
    if a > b:
        return []
    if not widths:
        where = f"from readings where series in ({_marks(series)}) and {FINITE} and step between ? and ?"
        both = [
            db.execute(f"select step, {order}(value) {where}", (*series, a, b)) for order in ("min", "max")
        ]
        return [row for rows in both for row in rows if row[0] is not None]
    *finer, width = widths
    begin, end = -(-a // width), (b + 1) // width
    if begin >= end:
        return _ends(db, series, a, b, finer)
    where = f"from coarse where series in ({_marks(series)}) and width = ? and bucket between ? and ?"
    found = [
        row
        for kind, order in (("low", "min"), ("high", "max"))
        for row in db.execute(
            f"select {kind}_step, {order}({kind}) {where}", (*series, width, begin, end - 1)
        )
        if row[0] is not None
    ]
    return found + _ends(db, series, a, begin * width - 1, finer) + _ends(db, series, end * width, b, finer)


def _marks(series: Sequence[int]) -> str:
    return ", ".join("?" * len(series))
