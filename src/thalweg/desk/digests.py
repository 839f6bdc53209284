"""What is new for a subscriber: papers since their last mail that they want and never had."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from zoneinfo import ZoneInfo

from thalweg.desk.counts import counts
from thalweg.desk.database import Database
from thalweg.desk.fitting import Fitting
from thalweg.desk.ledger import Ledger
from thalweg.desk.library import Library
from thalweg.desk.new_arrivals import arrivals
from thalweg.desk.novelty import first_seen
from thalweg.desk.paper import Paper
from thalweg.desk.shelf import Shelf
from thalweg.desk.subscriptions import Subscriber
from thalweg.desk.wants import Wants

__all__ = ["Digest", "New", "News", "period"]

# An import writes down when it began and shows what it brought when it is done; looking back is harmless,
# since the ledger knows what was sent.
SLACK = 3600.0
MOST_IMPORTED = 5000  # of one topic, or for one's own questions; an archive of a million papers is no news


@dataclass(frozen=True)
class New:
    """A paper and when it was first here, in seconds of 1970, or got its verdict if that was later."""

    paper: Paper
    when: float
    upvotes: int


@dataclass(frozen=True)
class Digest:
    """``papers``: all that are new, the most important first; ``period`` is the day or week that it is for.

    ``looked`` is when they were looked up, in seconds of 1970.
    """

    subscriber: Subscriber
    period: str
    papers: tuple[Paper, ...]
    looked: float


def period(every: str, now: float, zone: ZoneInfo | None) -> str:
    """The day or ISO week of a moment by the clock on the wall; a day has one mail however long it is.

    Args:
        zone: None is this machine's.
    """
    day = datetime.datetime.fromtimestamp(now, zone).date()
    if every == "daily":
        return day.isoformat()
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


class News:
    """What came after ``since``, the most important first: by upvotes, then what was measured, then date.

    ``cut`` says, in sentences, of what there was too much to look at all of it.

    Args:
        since, now: seconds of 1970.
        wants: what there is somebody for; of imported papers only these are looked at.
    """

    def __init__(
        self, database: Database, shelf: Shelf, since: float, now: float, wants: Iterable[Wants] = (Wants(),)
    ) -> None:
        self.looked = now
        self._shelf = shelf
        self.cut: list[str] = []
        self._answers: dict[str, frozenset[str]] = {}
        seen = first_seen(database, shelf.papers, now)
        when = {one.id: (one, seen[one.key].latest) for one in shelf.papers if one.key in seen}
        found = {name: pair for name, pair in when.items() if pair[1] > since - SLACK}
        judged = set(found)
        library, wants = Library(database), tuple(wants)
        # By label first: what nobody wants, however much of it came, takes no place from what somebody does.
        for kind, name in sorted({pair for one in wants for pair in one.labels}):
            for one in self._arrived(library, since - SLACK, {kind: name}):
                if one.id not in shelf.by_id:
                    found[one.id] = (one, one.added)
        if any(one.everything or one.questions for one in wants):
            for one in self._arrived(library, since - SLACK):
                if one.id not in shelf.by_id:
                    found[one.id] = (one, one.added)
                    judged.add(one.id)
        votes = counts(database, [one.key for one, _ in found.values()])
        new = [New(paper, moment, votes[paper.key][0]) for paper, moment in found.values()]
        self.items = sorted(new, key=_importance, reverse=True)
        self._judged = [one.paper for one in self.items if one.paper.id in judged]

    def _arrived(self, library: Library, since: float, labels: dict[str, str] | None = None) -> list[Paper]:
        papers = arrivals(library, since, MOST_IMPORTED + 1, labels)
        if len(papers) > MOST_IMPORTED:
            what = " ".join(f"with the {kind} {name!r}" for kind, name in (labels or {}).items())
            self.cut.append(
                f"more than {MOST_IMPORTED} papers {what or 'for questions and for all'} came since the last "
                f"mail: the {MOST_IMPORTED} of the latest days were looked at, the others are in no mail"
            )
        return papers[:MOST_IMPORTED]

    def digest(self, subscriber: Subscriber, ledger: Ledger, period: str) -> Digest:
        """The digest of one subscriber; it may be empty."""
        since = subscriber.since - SLACK
        fresh = [one.paper for one in self.items if one.when > since]
        if fresh:
            # A paper may have been imported, and sent, before the catalog had it, or after.
            ours = self._shelf.by_id
            had = {ours[name].id if name in ours else name for name in ledger.had(subscriber.id)}
            fresh = [one for one in fresh if one.id not in had]
        asked = frozenset[str]().union(*map(self._answering, subscriber.wants.questions))
        wanted = (one for one in fresh if one.id in asked or subscriber.wants.tagged(one))
        return Digest(subscriber, period, tuple(wanted), self.looked)

    @cached_property
    def _fitting(self) -> Fitting:
        return Fitting(self._judged)

    def _answering(self, question: str) -> frozenset[str]:
        """Ids of what fits a question, found once for all who ask it."""
        if question not in self._answers:
            judged = zip(self._judged, self._fitting(question), strict=True)
            self._answers[question] = frozenset(one.id for one, good in judged if good)
        return self._answers[question]


def _importance(one: New) -> tuple[int, bool, str, float, str]:
    return (one.upvotes, one.paper.measured is not None, one.paper.date, one.when, one.paper.id)
