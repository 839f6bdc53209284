"""Which imported papers came since a moment; quick in a library of a million, however many are new."""

from __future__ import annotations

from collections.abc import Mapping

from thalweg.desk.library import Library
from thalweg.desk.paper import Paper

__all__ = ["arrivals"]

FEW = 5000  # rows that are sorted sooner than an index is walked


def arrivals(
    library: Library, since: float, most: int, labels: Mapping[str, str] | None = None
) -> list[Paper]:
    """The ``most`` that came out last of papers imported after ``since`` (seconds of 1970), latest first.

    Args:
        labels: those alone that have every one of these (``{"topic": "spikes"}``).
    """
    first, last = _first(library, since)
    if first > last:
        return []
    if labels:
        found = library.with_labels(labels, most, after=first - 1)
        return library.by_rowid([number for _, number in found])
    # The plus keeps SQLite from sorting a whole archive that has just come: the index by day has the order.
    number = "paper" if last - first < FEW else "+paper"
    rows = library.database.rows(
        f"SELECT paper FROM imported WHERE {number} >= ? "
        "ORDER BY published DESC, submitted DESC, paper DESC LIMIT ?",
        (first, most),
    )
    return library.by_rowid([row["paper"] for row in rows])


def _first(library: Library, since: float) -> tuple[int, int]:
    """The first number after ``since`` and the last of all: numbers grow with time, so halving finds it."""
    last = library.database.rows("SELECT coalesce(max(paper), 0) FROM imported")[0][0]
    low, high = 1, last + 1
    while low < high:
        middle = (low + high) // 2
        rows = library.database.rows(
            "SELECT paper, CAST(added AS REAL) AS added FROM imported "
            "WHERE paper >= ? ORDER BY paper LIMIT 1",
            (middle,),
        )
        if not rows or rows[0]["added"] > since:
            high = middle
        else:
            low = rows[0]["paper"] + 1
    return low, last
