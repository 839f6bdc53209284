"""Atom and RSS feeds: of everything, of a topic, a room, a finding, a question; a new verdict is news."""

from __future__ import annotations

import datetime
import hashlib
import sqlite3
import time
from collections.abc import Sequence
from email.utils import format_datetime, parsedate_to_datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from starlette.responses import Response

from thalweg._core.checks import check_choice
from thalweg.desk.api_shapes import FAILURES
from thalweg.desk.feed_writing import Feed, Item
from thalweg.desk.fitting import Fitting
from thalweg.desk.known_topics import known_topic
from thalweg.desk.new_arrivals import arrivals
from thalweg.desk.novelty import FirstSeen, first_seen
from thalweg.desk.paper import Paper
from thalweg.desk.periods import start_of
from thalweg.desk.shelf import Shelf
from thalweg.desk.surviving import SurvivingRoute, shelf_of

router = APIRouter(route_class=SurvivingRoute)
MOST = 50
RECENT = 30 * 86400.0  # seconds in which a paper is looked at for questions though search prefers others
LATELY = 300  # such papers
KINDS = {"atom": "application/atom+xml", "rss": "application/rss+xml"}


# Nobody reads a feed's errors but people, so they are pages.
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The feed", "content": {kind: {} for kind in KINDS.values()}},
    304: {"description": "Nothing is new since"},
    **{code: {**one, "model": None, "content": {"text/html": {}}} for code, one in FAILURES.items()},
}


@router.get("/feeds/papers.{kind}", tags=["feeds"], response_class=Response, responses=ANSWERS)
def feed(
    request: Request,
    kind: Literal["atom", "rss"],
    topic: Annotated[str, Query(max_length=100)] = "",
    room: Annotated[str, Query(max_length=40)] = "",
    finding: Annotated[str, Query(max_length=100)] = "",
    q: Annotated[str, Query(max_length=400)] = "",
    if_none_match: Annotated[str, Header()] = "",
    if_modified_since: Annotated[str, Header()] = "",
) -> Response:
    """The newest papers and verdicts of a topic, a room, a finding or a question; of all without one."""
    if finding:
        check_choice("finding", finding, shelf_of(request).findings)
    topic = known_topic(shelf_of(request), topic)
    given = {"topic": topic, "room": room, "finding": finding, "q": " ".join(q.split())}
    chosen = {name: value for name, value in given.items() if value}
    problems = request.app.state.problems

    def broken(item: Item, error: Exception) -> None:
        problems.report("feeds", f"{item.paper.key} is left out: {type(error).__name__} {error}")

    seen = _seen(request)
    items = sorted((_item(one, seen) for one in _papers(request, **chosen)), key=lambda pair: -pair[0])
    shown = [item for _, item in items[:MOST]]
    written, latest = Feed(kind, chosen, base_of(request)).written(shown, broken)
    headers = {
        "ETag": f'"{hashlib.sha256(written).hexdigest()[:32]}"',
        "Last-Modified": format_datetime(
            datetime.datetime.fromtimestamp(int(latest), datetime.UTC), usegmt=True
        ),
        "Cache-Control": "public, max-age=600",
    }
    if _known(headers["ETag"], latest, if_none_match, if_modified_since):
        return Response(status_code=304, headers=headers)
    return Response(written, media_type=KINDS[kind], headers=headers)


def base_of(request: Request) -> str:
    """The public address, or the one on which the desk listens; never what the Host header says."""
    if public := request.app.state.public:
        return public
    host, port = request.scope.get("server") or ("127.0.0.1", 8600)
    usual = port in (None, {"http": 80, "https": 443}.get(request.url.scheme))
    return f"{request.url.scheme}://{f'[{host}]' if ':' in host else host}{'' if usual else f':{port}'}"


def _papers(request: Request, topic: str = "", room: str = "", finding: str = "", q: str = "") -> list[Paper]:
    """Enough papers that the latest news is among them: what came out, was imported, or got a verdict."""
    shelf = shelf_of(request)
    try:
        found = _found(shelf, topic, room, finding, q)
    except sqlite3.Error as error:
        request.app.state.problems.report("database", f"imported papers cannot be read for feeds: {error}")
        found = _fitting(shelf.papers, q) if q else list(shelf.papers)
    kept = {
        one.id: one
        for one in found
        if topic in ("", *one.topics) and room in ("", one.room) and finding in ("", *one.addresses)
    }
    return list(kept.values())


def _found(shelf: Shelf, topic: str, room: str, finding: str, q: str) -> list[Paper]:
    named = (("topic", topic), ("room", room), ("finding", finding))
    labels = {kind: name for kind, name in named if name}
    lately = arrivals(shelf.library, time.time() - RECENT, LATELY, labels) if shelf.library else []
    lately = [one for one in lately if one.id not in shelf.by_id]
    if q:
        # The best of a million stay the best; what is new and fits has to be looked for.
        best = shelf.search(q, MOST, topic=topic, room=room, finding=finding)
        return [*(one for one, _ in best), *_fitting(lately, q)]
    return [*shelf.chosen(topic=topic, room=room, finding=finding, count=MOST), *lately, *shelf.papers]


def _fitting(papers: Sequence[Paper], q: str) -> list[Paper]:
    return [one for one, good in zip(papers, Fitting(papers)(q), strict=True) if good]


def _seen(request: Request) -> dict[str, FirstSeen]:
    papers, now = shelf_of(request).papers, time.time()
    try:
        return first_seen(request.app.state.database, papers, now)
    except sqlite3.Error as error:
        request.app.state.problems.report("database", f"cannot be used for feeds: {error}")
        return first_seen(None, papers, now)


def _item(one: Paper, seen: dict[str, FirstSeen]) -> tuple[float, Item]:
    """With when there was news of it: a paper that has no date and no verdict had none, and stands last."""
    try:
        published = start_of(one.date)
    except (TypeError, ValueError):
        published = 0.0
    if published > time.time():  # a day that has not come is none
        published = 0.0
    first = seen.get(one.key)
    news = max(published, first.latest if first else one.added)
    return news, Item(one, published, news or (first.seen if first else one.added))


def _known(tag: str, latest: float, if_none_match: str, if_modified_since: str) -> bool:
    """Whether the asker has this already (RFC 9110, 13.2.2): by tag, or by date where there is no tag."""
    if if_none_match:
        tags = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
        return "*" in tags or tag in tags
    try:
        since = parsedate_to_datetime(if_modified_since)
    except (TypeError, ValueError, IndexError, OverflowError):
        return False
    return since.tzinfo is not None and int(latest) <= since.timestamp()
