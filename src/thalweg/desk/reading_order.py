"""Catalog and imported papers in one order, the newest first, read a page at a time wherever the page is.

Only the days and how many papers each has are kept in memory, so that the ten-thousandth page costs what the
first does. Within a day, papers of the catalog come first: they are the ones with code and measurements.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import accumulate

from thalweg.desk.library import Library
from thalweg.desk.paper import Paper
from thalweg.desk.periods import Period

__all__ = ["ReadingOrder"]


class ReadingOrder:
    """What there is as of one change of the library; dates that are months stand behind that month's days.

    Args:
        catalog: papers of the catalog.
        library: imported papers, or None.
        known: numbers of imported papers that are in the catalog too, and the days they are counted under.
    """

    def __init__(self, catalog: Sequence[Paper], library: Library | None, known: dict[int, str]) -> None:
        self._papers, self._library, self._left_out = catalog, library, known
        self._known = json.dumps(sorted(known))
        counts = dict(library.days()) if library else {}
        for day in known.values():
            if counts.get(day):  # else the count is damaged, which /health says
                counts[day] -= 1
        self._catalog: dict[str, list[Paper]] = defaultdict(list)
        for one in catalog:
            self._catalog[one.date].append(one)
        # Ascending, as bisection wants it; places are counted from the end.
        self.dates = sorted({day for day, count in counts.items() if count} | set(self._catalog))
        sizes = [counts.get(date, 0) + len(self._catalog.get(date, ())) for date in reversed(self.dates)]
        self._starts = [0, *accumulate(sizes)]

    def without(self, keys: Collection[str], rows: dict[int, str]) -> ReadingOrder:
        """The same without some papers: of the catalog by key, imported ones by number with their days."""
        kept = [one for one in self._papers if one.key not in keys]
        return ReadingOrder(kept, self._library, self._left_out | rows)

    def count(self, first: str = "", last: str = "~") -> int:
        """How many papers have a date from ``first`` to ``last``, both included."""
        start, stop = self._places(first, last)
        return stop - start

    def page(self, start: int, count: int, first: str = "", last: str = "~") -> list[Paper]:
        """``count`` papers from the ``start``-th on, of those with a date from ``first`` to ``last``."""
        begin, stop = self._places(first, last)
        begin += start
        stop = min(stop, begin + count)
        found: list[Paper] = []
        block = bisect_right(self._starts, begin) - 1
        while begin < stop:
            date = self.dates[-1 - block]
            skip, take = begin - self._starts[block], min(stop, self._starts[block + 1]) - begin
            own = self._catalog.get(date, [])
            part = own[skip : skip + take]
            found += part
            if len(part) < take:
                found += self._imported(date, max(skip - len(own), 0), take - len(part))
            begin += take
            block += 1
        return found

    def count_of(self, period: Period) -> int:
        """How many papers are known to be of a period."""
        return sum(self.count(first, last) for first, last in period.spans)

    def page_of(self, period: Period, start: int, count: int) -> list[Paper]:
        """``count`` papers of a period from the ``start``-th on."""
        found: list[Paper] = []
        for first, last in period.spans:
            found += self.page(start, count - len(found), first, last)
            start = max(start - self.count(first, last), 0)
        return found

    def older(self, date: str, lengths: Collection[int] = (7, 10)) -> str:
        """The last date before ``date`` that has papers; ``lengths``: whether months, days or both count."""
        place = bisect_left(self.dates, date)
        return next((one for one in reversed(self.dates[:place]) if len(one) in lengths), "")

    def newer(self, date: str, lengths: Collection[int] = (7, 10)) -> str:
        """The first date after ``date`` that has papers."""
        place = bisect_right(self.dates, date)
        return next((one for one in self.dates[place:] if len(one) in lengths), "")

    def _places(self, first: str, last: str) -> tuple[int, int]:
        low, high = bisect_left(self.dates, first), bisect_right(self.dates, last)
        total = len(self.dates)
        return self._starts[total - high], self._starts[max(total - low, total - high)]

    def _imported(self, day: str, skip: int, count: int) -> list[Paper]:
        assert self._library is not None
        return self._library.of_day(day, skip, count, self._known)
