"""The papers of a day, a week or a month in the order of their trend."""

from __future__ import annotations

from collections import Counter

from thalweg.desk.paper import Paper
from thalweg.desk.periods import Period
from thalweg.desk.shelf import Shelf


def by_trend(shelf: Shelf, period: Period, start: int, count: int) -> list[Paper]:
    """``count`` papers from the ``start``-th on: those that trend, then the others, the newest first."""
    order = shelf.order
    dates = [day for first, last in period.spans for day in reversed(order.dates) if first <= day <= last]
    first = [one for one in shelf.trending() if one.date in dates]
    keys, on_date = {one.key for one in first}, Counter(one.date for one in first)
    found, skip = first[start : start + count], max(start - len(first), 0)
    for date in dates:
        others = order.count(date, date) - on_date[date]
        if len(found) < count and skip < others:
            # Of this date all that may have to be left out is read as well.
            read = order.page(0, skip + count + on_date[date], date, date)
            rest = [one for one in read if one.key not in keys]
            found += rest[skip : skip + count - len(found)]
        skip = max(skip - others, 0)
    return found
