"""The JSON API, in the shapes of Hugging Face's papers API, so that ``huggingface_hub`` works against it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request

from thalweg.desk.paper import Paper
from thalweg.desk.paper_pages import paper_of, shelf_of
from thalweg.desk.shelf import months_of

router = APIRouter(prefix="/api", tags=["papers"])
Limit = Annotated[int, Query(ge=1, le=100)]


def record(one: Paper) -> dict[str, Any]:
    """A paper under the names that ``huggingface_hub.PaperInfo`` reads, and ours beside them."""
    return {
        "id": one.id,
        "title": one.title,
        "summary": one.summary,
        "authors": [{"name": name} for name in one.authors],
        "publishedAt": f"{one.date}-01T00:00:00.000Z" if one.date else None,
        "upvotes": 0,
        "ai_keywords": list(one.topics),
        "githubRepo": one.repository or None,
        "thalweg": {
            "key": one.key,
            "room": one.room,
            "claim": one.claim,
            "status": one.state,
            "parts": list(one.status.parts_present) if one.status else [],
            "addresses": list(one.addresses),
            "verdict": one.measured.verdict if one.measured else None,
            "effect": one.measured.effect if one.measured else None,
        },
    }


def daily(one: Paper) -> dict[str, Any]:
    """The same as an item of a list: the paper inside, what the list says of it outside."""
    whole = record(one)
    listed = {"title": whole["title"], "publishedAt": whole["publishedAt"], "numComments": 0}
    return {"paper": whole, "summary": whole["summary"], **listed}


@router.get("/daily_papers")
def daily_papers(
    request: Request,
    date: str = "",
    week: str = "",
    month: str = "",
    submitter: str = "",
    sort: Literal["publishedAt", "trending"] = "publishedAt",
    p: Annotated[int, Query(ge=0, le=100_000)] = 0,
    limit: Limit = 50,
) -> list[dict[str, Any]]:
    """Papers of a day, a week or a month; without one, all of them, the newest first.

    The built-in catalog knows the month of a paper only: a day stands for its month.
    """
    shelf = shelf_of(request)
    if submitter:
        return []
    if date or week or month:
        wanted = months_of(date=date, week=week, month=month)
        found = tuple(one for name in wanted for one in shelf.of_month(name))
    else:
        found = shelf.trending() if sort == "trending" else shelf.papers
    return [daily(one) for one in found[p * limit : (p + 1) * limit]]


@router.get("/papers/search")
def search(
    request: Request, q: Annotated[str, Query(max_length=400)] = "", limit: Limit = 30
) -> list[dict[str, Any]]:
    """Papers that fit a question, best first."""
    shelf = shelf_of(request)
    found = [one for one, _ in shelf.search(q, limit)] if q.strip() else shelf.papers[:limit]
    return [daily(one) for one in found]


@router.get("/papers/{name}")
def paper(request: Request, name: str) -> dict[str, Any]:
    """One paper, by arXiv id or key."""
    return record(paper_of(request, name))


@router.get("/papers/{name}/evidence")
def evidence(request: Request, name: str) -> dict[str, Any]:
    """Everything that was measured for a paper: every arm, every seed."""
    found = paper_of(request, name)
    if found.measured is None:
        raise HTTPException(404, f"nothing was measured for {name!r} yet")
    return found.measured.raw
