"""Atom and RSS feeds: of everything, of a topic, of a room, of a question."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from feedgen.feed import FeedGenerator
from starlette.responses import Response

from thalweg.desk.paper import Paper
from thalweg.desk.paper_pages import shelf_of
from thalweg.desk.periods import start_of

router = APIRouter()
MOST = 50
KINDS = {"atom": "application/atom+xml", "rss": "application/rss+xml"}


@router.get("/feeds/papers.{kind}", tags=["feeds"], response_class=Response)
def feed(
    request: Request,
    kind: Literal["atom", "rss"],
    topic: Annotated[str, Query(max_length=100)] = "",
    room: Annotated[str, Query(max_length=40)] = "",
    q: Annotated[str, Query(max_length=400)] = "",
) -> Response:
    """The newest papers of a topic, a room or a question; of all without one of them."""
    shelf = shelf_of(request)
    if q.strip():
        found = [one for one, _ in shelf.search(q, MOST, topic=topic, room=room)]
        found.sort(key=lambda one: one.date, reverse=True)
    else:
        found = list(shelf.chosen(topic=topic, room=room))
    about = " · ".join(part for part in (topic, room, q.strip()) if part) or "all papers"
    written = _written(kind, about, str(request.url), str(request.base_url), found[:MOST])
    return Response(written, media_type=KINDS[kind])


def _written(kind: str, about: str, own: str, base: str, papers: Sequence[Paper]) -> bytes:
    made = FeedGenerator()
    made.id(own)
    made.title(f"thalweg: {about}")
    made.description("Papers on how training works, with what was measured.")
    made.link(href=own, rel="self")
    made.link(href=f"{base}papers", rel="alternate")
    made.updated(max((_day(one) for one in papers), default=_EPOCH))
    for one in papers:
        entry = made.add_entry(order="append")
        entry.id(one.link or f"urn:thalweg:{one.key}")
        entry.title(one.title)
        entry.link(href=f"{base}papers/{one.key}")
        entry.updated(_day(one))
        entry.published(_day(one))
        entry.summary(f"{one.summary} [{one.verdict}]")
        for topic in one.topics:
            entry.category(term=topic)
    return made.atom_str() if kind == "atom" else made.rss_str()


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _day(one: Paper) -> datetime.datetime:
    """The first of its month where no more is known."""
    return datetime.datetime.fromtimestamp(start_of(one.date), datetime.UTC)
