"""The papers that the desk shows, built-in and imported: by period, topic, room, finding and question.

The catalog is in memory; imported papers, of which there may be a million, stay in the database but for the
page that is asked for. A paper that is both is one: the catalog's, with authors and day from the import.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from thalweg._core.checks import check_choice
from thalweg.desk._shelf_merging import Merged, merge
from thalweg.desk.counts import most_upvoted
from thalweg.desk.evidence_rows import evidence_stamp
from thalweg.desk.imported import arxiv_id
from thalweg.desk.index.filters import Filters, check_range, within
from thalweg.desk.library import Library
from thalweg.desk.paper import Paper, of_catalog
from thalweg.desk.paper_search import PaperSearch
from thalweg.desk.periods import start_of
from thalweg.desk.problems import Problems
from thalweg.desk.reading_order import ReadingOrder
from thalweg.papers.entry import ROOMS, UnknownPaper, load
from thalweg.papers.status import STATES

__all__ = ["IMPORTED", "Shelf"]

IMPORTED = "imported"  # the status of a paper that is not in the catalog
TREND = 30 * 86400  # seconds for which an upvote makes a paper trend
MOST = 500  # papers that trend


class Shelf:
    """Reads the catalog once; every list is newest first.

    Args:
        library: imported papers, if there can be any.
        problems: told when votes cannot be read; lists are then shown without them.
    """

    def __init__(self, library: Library | None = None, problems: Problems | None = None) -> None:
        self.library = library
        self._problems = problems
        self._papers: tuple[int, tuple[Paper, ...]] | None = None
        self._last: tuple[tuple[Paper, ...], Merged] | None = None
        self._topics: tuple[int | None, tuple[tuple[str, int], ...]] = (None, ())
        self.finder = PaperSearch(library, problems)

    @property
    def _built_in(self) -> tuple[Paper, ...]:
        """The catalog, anew when a study has ended: each paper remembers what was measured of it."""
        stamp = evidence_stamp()
        if self._papers is None or self._papers[0] != stamp:
            self._papers = stamp, tuple(of_catalog(entry) for entry in load())
        return self._papers[1]

    @property
    def _merged(self) -> Merged:
        seen = self._built_in, self.library.newest_change() if self.library else 0
        if self._last is None or self._last[0] is not seen[0] or self._last[1].change != seen[1]:
            self._last = seen[0], merge(seen[0], self.library, seen[1])
        return self._last[1]

    @property
    def papers(self) -> tuple[Paper, ...]:
        """Papers of the catalog."""
        return self._merged.papers

    @property
    def by_id(self) -> dict[str, Paper]:
        """Papers of the catalog by key, by arXiv id, and by the ids that they were imported under."""
        return self._merged.by_id

    @property
    def order(self) -> ReadingOrder:
        """All papers, newest first, a page at a time."""
        return self._merged.order

    def paper(self, name: str) -> Paper:
        """The paper with this key or id; an arXiv id may have a version, and ``arxiv:`` before it.

        Raises:
            UnknownPaper: there is none.
        """
        bare = arxiv_id(name.replace("~", "/")) or name
        found = self.by_id.get(bare) or (self.library.by_id(bare) if self.library else None)
        if found is None:
            raise UnknownPaper(f"no paper has the key or arXiv id {name!r}")
        return found

    def of_month(self, month: str) -> tuple[Paper, ...]:
        """Papers of the catalog of which no more than the month is known, which is this one."""
        return tuple(one for one in self.papers if one.date == month)

    def trending(self) -> tuple[Paper, ...]:
        """Papers upvoted in the last days, then those whose claims were measured, the latest first."""
        now = time.time()
        upvoted: dict[str, tuple[float, Paper]] = {}
        for key, votes in self._votes(now - TREND):
            try:
                one = self.paper(key)
            except UnknownPaper:
                continue
            # A vote for a paper of today weighs as eight for one that is two weeks old.
            upvoted[one.key] = (votes / (2 + max(now - start_of(one.date), 0) / 86400), one)
        first = [one for _, one in sorted(upvoted.values(), key=lambda pair: pair[0], reverse=True)]
        done = [one for one in self.papers if one.measured and one.key not in upvoted]
        done.sort(key=lambda one: one.measured.date if one.measured else "", reverse=True)
        return (*first, *done)

    def _votes(self, since: float) -> list[tuple[str, int]]:
        try:
            return most_upvoted(self.library.database if self.library else None, since, MOST)
        except sqlite3.Error as error:
            if self._problems:
                self._problems.report("votes", f"cannot be read: {error}")
            return []

    def chosen(
        self,
        *,
        topic: str = "",
        room: str = "",
        finding: str = "",
        state: str = "",
        since: str = "",
        until: str = "",
        start: int = 0,
        count: int = 100,
    ) -> tuple[Paper, ...]:
        """``count`` papers from the ``start``-th on that have a topic, a room, a finding and a status.

        An empty filter lets everything through.

        Args:
            since: the first day, month or year; ``until`` the last one.

        Raises:
            ValueError: there is no such room or status, or no such date.
        """
        _check(room, state)
        check_range(since, until)
        days = (since or ("0" if until else ""), f"{until}~")
        if not (topic or room or finding or state):
            return tuple(self.order.page(start, count, *days))
        ours = self._ours(topic=topic, room=room, finding=finding, state=state)
        ours = [one for one in ours if within(one.date, since, until)]
        if self.library is None or state in STATES:
            return tuple(ours[start : start + count])
        labels = {
            kind: name for kind, name in (("topic", topic), ("room", room), ("finding", finding)) if name
        }
        return self._mixed(ours, labels, start, count, days)

    def _ours(self, *, topic: str = "", room: str = "", finding: str = "", state: str = "") -> list[Paper]:
        """What of the catalog passes the filters."""
        return [
            one
            for one in self.papers
            if (not topic or topic in one.topics)
            and (not finding or finding in one.addresses)
            and room in ("", one.room)
            and state in ("", one.state)
        ]

    def _mixed(
        self, ours: Sequence[Paper], labels: dict[str, str], start: int, count: int, days: tuple[str, str]
    ) -> tuple[Paper, ...]:
        """Papers of the catalog and imported ones with these labels, by date."""
        assert self.library is not None
        if not labels:  # imported ones alone
            found = self.library.newest(count, start, self._merged.known, *days)
            return tuple(found)
        theirs = self.library.with_labels(labels, start + count, self._merged.known, *days)
        both: list[tuple[str, Paper | int]] = [*((one.date, one) for one in ours), *theirs]
        both.sort(key=lambda pair: pair[0], reverse=True)  # stable: ours stay before theirs of the same date
        wanted = [one for _, one in both[start : start + count]]
        read = iter(self.library.by_rowid([one for one in wanted if isinstance(one, int)]))
        return tuple(next(read) if isinstance(one, int) else one for one in wanted)

    def search(
        self,
        question: str,
        limit: int = 30,
        *,
        topic: str = "",
        room: str = "",
        finding: str = "",
        state: str = "",
        since: str = "",
        until: str = "",
        start: int = 0,
    ) -> tuple[tuple[Paper, str], ...]:
        """Papers that fit a question, best first, with what matched; filters as for :meth:`chosen`.

        Args:
            since: the first day, month or year; ``until`` the last one.
            start: how many of the best to leave out.
        """
        _check(room, state)
        check_range(since, until)
        merged = self._merged
        ours = self._ours(topic=topic, room=room, finding=finding, state=state)
        filters = Filters(topic, room, since, until) if state in ("", IMPORTED) else None
        if (
            filters is not None and finding and self.library
        ):  # which the index of imported papers does not hold
            filters = replace(filters, rows=self.library.numbers_with("finding", finding))
        mine = {one.key: one for one in ours if within(one.date, since, until)}
        found = self.finder.find(question, mine, filters, merged.known, start, limit)
        return tuple((one.paper, one.why) for one in found)

    def similar(self, paper: Paper, count: int = 6) -> tuple[Paper, ...]:
        """The papers nearest in meaning."""
        return tuple(self.finder.alike(paper, self.by_id, self._merged.known, count))

    @property
    def topics(self) -> tuple[tuple[str, int], ...]:
        """Topics with the number of their papers, the largest first."""
        merged = self._merged
        if self._topics[0] != merged.change:
            counts = Counter(topic for one in merged.papers for topic in one.topics)
            counts.update(merged.label_counts(self.library, "topic") if self.library else {})
            ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            self._topics = merged.change, tuple(ordered)
        return self._topics[1]

    def addressing(self, count: int) -> dict[str, tuple[int, tuple[Paper, ...]]]:
        """Names of findings to how many imported papers address them by their text, and the newest."""
        library, merged = self.library, self._merged
        if library is None:
            return {}
        counts = merged.label_counts(library, "finding")
        newest = {name: library.with_labels({"finding": name}, count, merged.known) for name in counts}
        return {
            name: (counts[name], tuple(library.by_rowid([row for _, row in found])))
            for name, found in newest.items()
        }

    @property
    def findings(self) -> dict[str, tuple[Paper, ...]]:
        """Names of findings to the papers of the catalog that address them."""
        found: dict[str, list[Paper]] = defaultdict(list)
        for one in self.papers:
            for name in one.addresses:
                found[name].append(one)
        return {name: tuple(found[name]) for name in sorted(found)}


def _check(room: str, state: str) -> None:
    if room:
        check_choice("room", room, ROOMS)
    if state:
        check_choice("status", state, (*STATES, IMPORTED))
