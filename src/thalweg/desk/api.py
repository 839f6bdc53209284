"""The JSON API, in the shapes of Hugging Face's papers API, so that ``huggingface_hub`` works against it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Path, Query, Request
from pydantic import ValidationError

from thalweg.desk.api_shapes import EvidenceShape, ListItem, PaperShape
from thalweg.desk.counts import tallies
from thalweg.desk.findings_api import check_names
from thalweg.desk.paper import Paper
from thalweg.desk.paper_pages import paper_of
from thalweg.desk.periods import period_of, start_of
from thalweg.desk.surviving import SurvivingRoute, shelf_of
from thalweg.desk.trend_of_period import by_trend
from thalweg.desk.voted_first import by_votes

router = APIRouter(prefix="/api", tags=["papers"], route_class=SurvivingRoute)
Limit = Annotated[int, Query(ge=1, le=100)]
Text = Annotated[str, Query(max_length=400)]
Name = Annotated[str, Path(examples=["galore", "2403.03507", "hep-th/9901001"])]
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
    # The client takes 0 votes inside for none said, and reads topics and repository outside alone.
    said = ("title", "summary", "publishedAt", "submittedOnDailyAt", "upvotes", "numComments")
    outside = (*said, "organization", "ai_keywords", "githubRepo")
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


@router.get("/daily_papers", response_model=list[ListItem])
def daily_papers(
    request: Request,
    date: Text = "",
    week: Text = "",
    month: Text = "",
    submitter: Text = "",
    sort: Literal["publishedAt", "trending"] = "publishedAt",
    p: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Limit = 50,
) -> list[dict[str, Any]]:
    """Papers of a day, a week or a month, the most upvoted first; without one, all, the newest first.

    Of a paper of the built-in catalog only the month may be known: then it is in its month, and in no day or
    week. Nobody submits papers here, so that a ``submitter`` has none.
    """
    shelf = shelf_of(request)
    start = p * limit
    if date or week or month:
        period = period_of(date=date, week=week, month=month)
        if sort == "trending":
            found = by_trend(shelf, period, start, limit)
        else:
            found = by_votes(shelf, period, start, limit, request.app.state.problems)
    elif sort == "trending":
        found = list(shelf.trending()[start : start + limit])
    else:
        found = shelf.order.page(start, limit)
    return listed(request, [] if submitter else found)


@router.get("/papers/search", response_model=list[ListItem])
def search(
    request: Request,
    q: Text = "",
    topic: Text = "",
    room: Text = "",
    finding: Text = "",
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
    topic = check_names(shelf, topic=topic, finding=finding)
    asked = {
        "topic": topic,
        "room": room,
        "finding": finding,
        "state": status,
        "since": since,
        "until": until,
    }
    if not q.strip():
        return listed(request, shelf.chosen(start=p * limit, count=limit, **asked))
    return listed(request, [one for one, _ in shelf.search(q, limit, start=p * limit, **asked)])


# Names may hold a slash, as old arXiv ids do: what ends in a word of ours goes first.
@router.get("/papers/{name:path}/similar", response_model=list[ListItem])
def similar(
    request: Request, name: Name, limit: Annotated[int, Query(ge=1, le=30)] = 6
) -> list[dict[str, Any]]:
    """The papers nearest in meaning to one, of the catalog and imported ones by turns."""
    return listed(request, shelf_of(request).similar(paper_of(request, name), limit))


@router.get("/papers/{name:path}/evidence", response_model=EvidenceShape)
def evidence(request: Request, name: Name) -> EvidenceShape:
    """Everything that was measured for a paper: every arm, every seed."""
    found = paper_of(request, name)
    if found.measured is None:
        raise HTTPException(404, f"nothing was measured for {name!r} yet")
    try:
        return EvidenceShape.model_validate(found.measured.raw)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, one["loc"])) for one in error.errors())
        raise HTTPException(503, f"the evidence of {name!r} is damaged: {wrong}") from None


@router.get("/papers/{name:path}", response_model=PaperShape)
def paper(request: Request, name: Name) -> dict[str, Any]:
    """One paper, by arXiv id, by another id that a list gives, or by key."""
    found = paper_of(request, name)
    return record(found, tally_of(request, [found])[found.key])
