"""The papers that the desk shows: the built-in catalog, by period, topic, room, finding and question."""

from __future__ import annotations

import datetime
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property

from thalweg._core.checks import check_choice
from thalweg.desk.paper import Paper, of_catalog
from thalweg.papers.entry import ROOMS, UnknownPaper, load
from thalweg.papers.search import search
from thalweg.papers.status import STATES

__all__ = ["Shelf"]

WEEK = re.compile(r"(\d{4})-W(\d{2})")


class Shelf:
    """Reads the catalog once; every list is newest first."""

    @cached_property
    def papers(self) -> tuple[Paper, ...]:
        found = [of_catalog(entry) for entry in load()]
        return tuple(sorted(found, key=lambda one: (one.date, one.arxiv), reverse=True))

    @cached_property
    def by_id(self) -> dict[str, Paper]:
        return {name: one for one in self.papers for name in (one.key, one.arxiv) if name}

    def paper(self, name: str) -> Paper:
        """The paper with this key or arXiv id.

        Raises:
            UnknownPaper: there is none.
        """
        bare = re.sub(r"v\d+$", "", name)
        if bare not in self.by_id:
            raise UnknownPaper(f"no paper has the key or arXiv id {name!r}")
        return self.by_id[bare]

    @cached_property
    def months(self) -> tuple[str, ...]:
        """Months in which there are papers, the newest first."""
        return tuple(sorted({one.date for one in self.papers if one.date}, reverse=True))

    def of_month(self, month: str) -> tuple[Paper, ...]:
        """Papers that came out in a month such as ``2024-05``."""
        return tuple(one for one in self.papers if one.date == month)

    def trending(self) -> tuple[Paper, ...]:
        """Papers whose claims were measured, the latest measurement first."""
        done = [one for one in self.papers if one.measured]
        return tuple(sorted(done, key=lambda one: one.measured.date if one.measured else "", reverse=True))

    def chosen(self, *, topic: str = "", room: str = "", state: str = "") -> tuple[Paper, ...]:
        """Papers of a topic, a room and a status; an empty filter lets everything through.

        Raises:
            ValueError: there is no such room or status.
        """
        if room:
            check_choice("room", room, ROOMS)
        if state:
            check_choice("status", state, STATES)
        return tuple(
            one
            for one in self.papers
            if (not topic or topic in one.topics) and room in ("", one.room) and state in ("", one.state)
        )

    def search(
        self, question: str, limit: int = 30, *, topic: str = "", room: str = "", state: str = ""
    ) -> tuple[tuple[Paper, str], ...]:
        """Papers that fit a question, best first, with what matched; filters as for :meth:`chosen`."""
        kept = {one.key for one in self.chosen(topic=topic, room=room, state=state)}
        hits = search(question, max(limit * 4, 60)) if question.strip() else []
        fitting = [(self.by_id[hit.entry.key], hit.why) for hit in hits if hit.entry.key in kept]
        return tuple(fitting[:limit])

    def similar(self, paper: Paper, count: int = 5) -> tuple[Paper, ...]:
        """The papers nearest in meaning."""
        about = f"{paper.title} {' '.join(paper.topics)} {paper.summary}"
        near = [one for one, _ in self.search(about, count + 1) if one is not paper]
        return tuple(near[:count])

    @cached_property
    def topics(self) -> tuple[tuple[str, int], ...]:
        """Topics with the number of their papers, the largest first."""
        counts = Counter(topic for one in self.papers for topic in one.topics)
        return tuple(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    @cached_property
    def findings(self) -> dict[str, tuple[Paper, ...]]:
        """Names of findings to the papers that address them."""
        found: dict[str, list[Paper]] = defaultdict(list)
        for one in self.papers:
            for name in one.addresses:
                found[name].append(one)
        return {name: tuple(found[name]) for name in sorted(found)}


def months_of(*, date: str = "", week: str = "", month: str = "") -> Sequence[str]:
    """The months that a day, an ISO week or a month touches; the built-in catalog knows months only.

    Raises:
        ValueError: the text is no such date.
    """
    given = [(name, value) for name, value in (("date", date), ("week", week), ("month", month)) if value]
    if len(given) != 1:
        raise ValueError(f"one of date, week and month must be given, got {len(given)}")
    name, value = given[0]
    try:
        if name == "month":
            return [datetime.date.fromisoformat(f"{value}-01").strftime("%Y-%m")]
        if name == "date":
            return [datetime.date.fromisoformat(value).strftime("%Y-%m")]
        match = WEEK.fullmatch(value)
        if match is None:
            raise ValueError
        year, number = int(match[1]), int(match[2])
        days = [datetime.date.fromisocalendar(year, number, day) for day in (1, 7)]
        return list(dict.fromkeys(day.strftime("%Y-%m") for day in days))
    except ValueError:
        shape = {
            "date": "a day such as 2024-05-17",
            "week": "a week such as 2024-W20",
            "month": "a month such as 2024-05",
        }
        raise ValueError(f"{name} must be {shape[name]}, got {value!r}") from None
