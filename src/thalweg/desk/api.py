"""The JSON API, in the shapes of Hugging Face's papers API, so that ``huggingface_hub`` works against it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request

from thalweg.desk.counts import tallies
from thalweg.desk.paper import Paper
from thalweg.desk.paper_pages import paper_of, shelf_of
from thalweg.desk.periods import period_of, start_of

router = APIRouter(prefix="/api", tags=["papers"])
Limit = Annotated[int, Query(ge=1, le=100)]
Text = Annotated[str, Query(max_length=400)]
LAST = 100  # page of a search


def record(one: Paper, tally: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """A paper under the names that ``huggingface_hub.PaperInfo`` reads, and ours beside them.

    Args:
        tally: upvotes and comments.
    """
    return {
        "id": one.id,
        "title": one.title,
        "summary": one.summary,
        "authors": [{"name": name} for name in one.authors],
        "publishedAt": moment(start_of(one.date)),
        "submittedOnDailyAt": moment(one.added),
        "upvotes": tally[0],
        "numComments": tally[1],
        "organization": {"name": one.organisation, "fullname": one.organisation}
        if one.organisation
        else None,
        "ai_keywords": list(one.topics),
        "githubRepo": one.repository or None,
        "thalweg": {
            "key": one.key,
            "room": one.room,
            "claim": one.claim,
            "status": one.state,
            "parts": list(one.status.parts_present) if one.status else [],
            "addresses": list(one.addresses),
            "automatic": one.automatic,
            "verdict": one.measured.verdict if one.measured else None,
            "effect": one.measured.effect if one.measured else None,
        },
    }


def moment(seconds: float) -> str | None:
    """Seconds of 1970 as the API writes them, None for none."""
    if not seconds:
        return None
    written = datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="milliseconds")
    return written.replace("+00:00", "Z")


def daily(one: Paper, tally: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """The same as an item of a list: the paper inside, what the list says of it outside."""
    whole = record(one, tally)
    outside = ("title", "summary", "publishedAt", "submittedOnDailyAt", "numComments", "organization")
    return {"paper": whole, **{name: whole[name] for name in outside}}


def tally_of(request: Request, papers: Sequence[Paper]) -> dict[str, tuple[int, int]]:
    """Upvotes and comments of each, by key."""
    found = tallies(request, [one.key for one in papers])
    both = {key: (one.upvotes, one.comments) for key, one in found.items()}
    return {one.key: both.get(one.key, (0, 0)) for one in papers}


def listed(request: Request, papers: Sequence[Paper]) -> list[dict[str, Any]]:
    """Papers as items of a list."""
    tally = tally_of(request, papers)
    return [daily(one, tally[one.key]) for one in papers]


@router.get("/daily_papers")
def daily_papers(
    request: Request,
    date: str = "",
    week: str = "",
    month: str = "",
    submitter: str = "",
    sort: Literal["publishedAt", "trending"] = "publishedAt",
    p: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Limit = 50,
) -> list[dict[str, Any]]:
    """Papers of a day, a week or a month; without one, all of them, the newest first.

    Of a paper of the built-in catalog only the month may be known: then it stands behind the papers of every
    day and week of its month.
    """
    shelf = shelf_of(request)
    start = p * limit
    if submitter:
        return []
    if date or week or month:
        period = period_of(date=date, week=week, month=month)
        found = shelf.order.page(start, limit, period.first, period.last)
        if period.kind != "month" and len(found) < limit:
            # Behind the papers of these days stand those of which only the month is known.
            others = [one for name in period.months for one in shelf.of_month(name)]
            start = max(start - shelf.order.count(period.first, period.last), 0)
            found += others[start : start + limit - len(found)]
    elif sort == "trending":
        found = list(shelf.trending()[start : start + limit])
    else:
        found = shelf.order.page(start, limit)
    return listed(request, found)


@router.get("/papers/search")
def search(
    request: Request,
    q: Text = "",
    topic: Text = "",
    room: Text = "",
    status: Text = "",
    since: Text = "",
    until: Text = "",
    p: Annotated[int, Query(ge=0, lt=LAST)] = 0,
    limit: Limit = 30,
) -> list[dict[str, Any]]:
    """Papers that fit a question, best first; without one, the newest that pass the filters.

    ``since`` and ``until`` are days, months or years, both included; ``p`` is the page, from 0.
    """
    shelf = shelf_of(request)
    asked = {"topic": topic, "room": room, "state": status, "since": since, "until": until}
    if not q.strip():
        return listed(request, shelf.chosen(start=p * limit, count=limit, **asked))
    return listed(request, [one for one, _ in shelf.search(q, limit, start=p * limit, **asked)])


@router.get("/papers/{name}")
def paper(request: Request, name: str) -> dict[str, Any]:
    """One paper, by arXiv id or key."""
    found = paper_of(request, name)
    return record(found, tally_of(request, [found])[found.key])


@router.get("/papers/{name}/similar")
def similar(
    request: Request, name: str, limit: Annotated[int, Query(ge=1, le=30)] = 6
) -> list[dict[str, Any]]:
    """The papers nearest in meaning to one, of the catalog and imported ones by turns."""
    return listed(request, shelf_of(request).similar(paper_of(request, name), limit))


@router.get("/papers/{name}/evidence")
def evidence(request: Request, name: str) -> dict[str, Any]:
    """Everything that was measured for a paper: every arm, every seed."""
    found = paper_of(request, name)
    if found.measured is None:
        raise HTTPException(404, f"nothing was measured for {name!r} yet")
    return found.measured.raw
