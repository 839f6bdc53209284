"""Fetches from arXiv that end, however often they are interrupted: a page is committed with its place.

What was fetched once is remembered by topic and category, so that a daily job knows what to ask for.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from filelock import FileLock, Timeout

from thalweg._core.checks import check_count
from thalweg.desk._fetch_rows import EVERYTHING, Fetch, fetch_of, fetches
from thalweg.desk.announcements import FEED, announced
from thalweg.desk.arxiv_source import ArxivSource, Query, minute
from thalweg.desk.database import Database
from thalweg.desk.library import Added, Library
from thalweg.desk.problems import Problems

__all__ = ["Fetch", "Fetcher", "Outcome", "fetches"]

SCHEMA = (
    """
    CREATE TABLE fetches (
        topic TEXT NOT NULL, category TEXT NOT NULL, since TEXT NOT NULL, until TEXT NOT NULL,
        most INTEGER NOT NULL, start INTEGER NOT NULL, done INTEGER NOT NULL, upto TEXT NOT NULL,
        PRIMARY KEY (topic, category)
    );
    """,
)
# A paper appears days after it was submitted, which is what the API sorts by.
OVERLAP = datetime.timedelta(days=7)
REPAIR = "asked for by its name it begins anew, and thalweg papers repair takes it out"


@dataclass(frozen=True)
class Outcome:
    """What a fetch brought; ``resumed`` is where an interrupted one went on; ``feed``: the API refused."""

    name: str
    added: Added
    refused: int = 0
    resumed: int = 0
    feed: bool = False


def prepare(database: Database) -> None:
    """Bring the table."""
    database.ensure("fetches", SCHEMA)


class Fetcher:
    """Fetches into a library.

    Args:
        problems: told of entries that are no papers, and of answers that did not come.
        feed: where the daily announcements are, for when the API refuses.
        progress: called after each page with the name of the fetch, papers read and papers there are.

    ``failed`` names the fetches that the API did not answer to the end, ``damaged`` those of which nobody
    knows any more what they were.
    """

    def __init__(
        self,
        library: Library,
        source: ArxivSource,
        *,
        problems: Problems | None = None,
        feed: str = FEED,
        progress: Callable[[str, int, int], None] = lambda name, done, total: None,
    ) -> None:
        self._library, self._source, self._feed = library, source, feed
        self._problems = problems or Problems(None)
        self._progress = progress
        self.failed: list[str] = []
        self.damaged: list[str] = []
        prepare(library.database)

    def fetch(self, topic: str = "", category: str = "", since: str = "", most: int = 200) -> Outcome:
        """The ``most`` latest papers of a topic, a category or both; one that was interrupted goes on.

        Args:
            since: a day such as 2026-11-01.

        Raises:
            ValueError: an argument is not allowed, or another fetch is under way.
            ConnectionError: arXiv did not answer; what came before is kept, and the next try goes on there.
            sqlite3.Error: the database cannot be written; what came before is kept.
        """
        asked = Query(topic, category, since)  # refuses what cannot be asked, before anything is written
        if since and asked.first > (now := minute(_now())):
            today = f"{now[:4]}-{now[4:6]}-{now[6:8]}"
            raise ValueError(f"since must not lie in the future, where {today} is today (UTC), got {since!r}")
        check_count("most", most)
        last = self._last(topic, category)
        if last is not None and not last.done and (last.since, last.most) == (since, most):
            return self._run(last)
        upto = last.upto if last else ""
        return self._run(Fetch(topic, category, since=since, until=_now(), most=most, upto=upto))

    def daily(self) -> Iterator[Outcome]:
        """What is new of everything that was fetched before; an interrupted fetch is finished first.

        A topic whose answer does not come is reported, and the others are fetched all the same, unless no
        way leads to arXiv.
        """
        self._problems.solved("fetch")
        for last in fetches(self._library.database, self._damaged):
            try:
                if not last.done:
                    yield (outcome := self._run(last))
                    if outcome.feed:
                        continue
                    last = replace(last, upto=last.until)
                since = datetime.datetime.fromisoformat(last.upto) - OVERLAP
                yield self._run(
                    replace(last, since=since.isoformat(), until=_now(), most=EVERYTHING, start=0, done=False)
                )
            except ConnectionError:
                if self._source.unreachable:
                    raise
                continue  # reported already

    def forget(self, topic: str = "", category: str = "") -> None:
        """Fetch this no more by :meth:`daily`; its papers stay.

        Raises:
            ValueError: it was never fetched.
        """
        with self._alone(), self._library.database.write() as on:
            gone = on.execute("DELETE FROM fetches WHERE topic = ? AND category = ?", (topic, category))
        if not gone.rowcount:
            asked = Fetch(topic, category)
            known = "; ".join(one.asked for one in fetches(self._library.database)) or "nothing yet"
            raise ValueError(f"{asked.asked} was never fetched; what was: {known}")
        self._problems.solved(Fetch(topic, category).source)

    def _damaged(self, name: str) -> None:
        self.damaged.append(name)
        self._problems.report("fetch", f"{name}: what is known of it is damaged; {REPAIR}")

    def _run(self, one: Fetch) -> Outcome:
        with self._alone():
            self._remember(one)
            try:
                return self._read(one)
            except ConnectionError as error:
                self._problems.report(one.source, str(error))
                self.failed.append(one.name)
                if not one.category or self._source.unreachable:
                    raise
                papers = announced(self._source.client, one.category, one.topic, feed=self._feed)
                # Not done: the API may have what was not announced today.
                return Outcome(one.name, self._library.add(papers), resumed=one.start, feed=True)

    def _read(self, one: Fetch) -> Outcome:
        query = Query(one.topic, one.category, one.since, one.until)
        total, refused = Added(), 0
        for page in self._source.pages(query, one.start, one.most):
            with self._library.database.write() as on:
                added = self._library.add(page.papers, on)
                on.execute(
                    "UPDATE fetches SET start = ? WHERE topic = ? AND category = ?",
                    (page.stop, one.topic, one.category),
                )
            for why in page.refused:
                self._problems.report(one.source, why)
            total = Added(*map(sum, zip(total, added, strict=True)))
            refused += len(page.refused)
            self._progress(one.name, page.stop, min(one.most, max(self._source.total, page.stop)))
        # Nothing is missing up to now if this one began where the last one ended, and was not cut off.
        whole = one.since <= one.upto and self._source.total <= one.most
        upto = one.until if whole or not one.upto else one.upto
        self._remember(replace(one, start=0, done=True, upto=upto))
        if not refused:
            self._problems.solved(one.source)
        return Outcome(one.name, total, refused, one.start)

    def _last(self, topic: str, category: str) -> Fetch | None:
        rows = self._library.database.rows(
            "SELECT * FROM fetches WHERE topic = ? AND category = ?", (topic, category)
        )
        try:
            return fetch_of(rows[0]) if rows else None
        except (TypeError, ValueError):
            return None  # damaged: as if it had never been

    def _remember(self, one: Fetch) -> None:
        with self._library.database.write() as on:
            on.execute(
                "REPLACE INTO fetches VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (one.topic, one.category, one.since, one.until, one.most, one.start, one.done, one.upto),
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One fetch at a time, or arXiv is asked more often than it wants; the lock ends with its process."""
        lock = FileLock(self._library.database.folder / "fetch.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise ValueError("another fetch is under way; arXiv is asked by one at a time") from None
        try:
            yield
        finally:
            lock.release()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M")
