"""Papers from the arXiv API, a page at a time, in an order that an interruption cannot confuse.

A query is cut off at a moment in the past, so that its results no longer change while they are read: a place
in them means the same tomorrow.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass

import arxiv
import requests

from thalweg.desk.imported import CATEGORY, LONGEST, Imported, categories_among, checked
from thalweg.desk.manners import polite_client

__all__ = ["ArxivSource", "Page", "Query"]


# Its name may hold dots (llama.cpp), but the one behind it ends a sentence.
REPOSITORY = re.compile(r"https?://(?:github|gitlab)\.com/[\w.-]+/[\w.-]*[\w-]")


@dataclass(frozen=True)
class Query:
    """``topic`` is words that must all occur, or phrases in quotation marks; between two moments."""

    topic: str = ""
    category: str = ""
    since: str = ""
    until: str = ""

    def __post_init__(self) -> None:
        if self.category and not CATEGORY.fullmatch(self.category):
            raise ValueError(f"category must be such as cs.LG, got {self.category!r}")
        if not self.category and not _terms(self.topic):
            raise ValueError(
                f"topic must hold at least one word where no category is given, got {self.topic!r}"
            )
        try:
            minute(self.since or "1991-01-01")
        except ValueError:
            raise ValueError(f"since must be a day such as 2026-11-01, got {self.since!r}") from None

    @property
    def first(self) -> str:
        """The minute from which on, as the API writes it."""
        return minute(self.since or "1991-01-01")

    @property
    def text(self) -> str:
        """In the language of the API."""
        parts = [f"all:{term}" for term in _terms(self.topic)]
        parts += [f"cat:{self.category}"] if self.category else []
        last = minute(self.until or "2100-01-01")
        return " AND ".join([*parts, f"submittedDate:[{self.first} TO {last}]"])


@dataclass(frozen=True)
class Page:
    """Papers from ``start`` on, in the order of the query; ``refused`` says what is none, and why."""

    start: int
    papers: tuple[Imported, ...]
    refused: tuple[str, ...]

    @property
    def stop(self) -> int:
        """Where the next page starts."""
        return self.start + len(self.papers) + len(self.refused)


class ArxivSource:
    """The API behind a client that minds its manners (:func:`thalweg.desk.manners.polite_client`).

    Args:
        client: asks, waits and tries again.
    """

    def __init__(self, client: arxiv.Client | None = None) -> None:
        self.client = client or polite_client()

    @property
    def total(self) -> int:
        """How many papers the query has that was asked last."""
        return self.client._session.get_adapter("https://").total

    @property
    def unreachable(self) -> bool:
        """Whether it was given up at once, since no way leads to arXiv."""
        return self.client._session.get_adapter("https://").unreachable

    def pages(self, query: Query, start: int = 0, stop: int = 2000) -> Iterator[Page]:
        """Pages of the results from ``start`` to ``stop``, the latest submission first.

        Raises:
            ConnectionError: a page did not come, although it was asked for again and again.
        """
        search = arxiv.Search(
            query.text,
            max_results=max(stop, 0),
            sort_by=arxiv.SortCriterion.SubmittedDate,
            sort_order=arxiv.SortOrder.Descending,
        )
        size = self.client.page_size
        results = self.client.results(search, start)
        found: list[arxiv.Result] = []
        try:
            if start >= stop:
                return
            for result in results:
                found.append(result)
                if len(found) == size:
                    page = _page(start, found)
                    yield page
                    start, found = page.stop, []
            if found:
                yield _page(start, found)
        except (arxiv.ArxivError, requests.RequestException) as error:
            said = f"it refuses for now ({error.status})" if isinstance(error, arxiv.HTTPError) else error
            raise ConnectionError(f"arXiv did not answer: {said}") from None


def _page(start: int, results: list[arxiv.Result]) -> Page:
    papers, refused = [], []
    for one in results:
        try:
            papers.append(_paper(one))
        except ValueError as error:
            refused.append(f"{one.entry_id}: {error}")
    return Page(start, tuple(papers), tuple(refused))


def _paper(one: arxiv.Result) -> Imported:
    """What is odd beside title and text costs no paper: classes of other catalogs, names without end."""
    code = REPOSITORY.search(f"{one.comment or ''} {one.summary}")
    institutes = [name for author in one.authors for name in author.affiliation]
    return checked(
        {
            "id": one.get_short_id(),
            "title": one.title,
            "abstract": one.summary,
            "authors": [author.name[: LONGEST["name"]] for author in one.authors],
            "published": one.published.isoformat(),
            "updated": one.updated.isoformat(),
            "categories": categories_among(one.categories),
            "organisation": institutes[0][: LONGEST["organisation"]] if institutes else "",
            "repository": code[0].removesuffix(".git") if code else "",
        },
        source="arxiv",
    )


def _terms(topic: str) -> list[str]:
    """Words, and phrases in quotation marks, without what the language of the API would take for its own."""
    found = []
    for phrase, word in re.findall(r'"([^"]*)"|(\S+)', topic):
        words = re.findall(r"[\w-]+", phrase or word)
        if words:
            found.append(f'"{" ".join(words)}"' if len(words) > 1 else words[0])
    return found


def minute(moment: str) -> str:
    """A day or moment in ISO's form as the API writes it; the text sorts by time."""
    return datetime.datetime.fromisoformat(moment).strftime("%Y%m%d%H%M")
