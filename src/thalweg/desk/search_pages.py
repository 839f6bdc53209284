"""The search page: a question, filters that stay, and the answers a page at a time."""

from __future__ import annotations

import calendar
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from thalweg.desk.index.filters import check_range, reversed_range
from thalweg.desk.known_topics import UnknownTopic, known_topic
from thalweg.desk.paper import Paper
from thalweg.desk.shelf import IMPORTED
from thalweg.desk.surviving import SurvivingRoute, shelf_of
from thalweg.desk.views import page
from thalweg.papers.entry import ROOMS
from thalweg.papers.status import STATES

router = APIRouter(include_in_schema=False, route_class=SurvivingRoute)
AT_ONCE = 20  # papers on a page
LAST = 100  # page; who has not found it among two thousand asks again
TOPICS = 60  # that are offered; any other can be typed
Text = Annotated[str, Query(max_length=400)]


@router.get("/search")
def search(
    request: Request,
    q: Text = "",
    topic: Text = "",
    room: Text = "",
    status: Text = "",
    since: Text = "",
    until: Text = "",
    p: Annotated[int, Query(ge=0, lt=LAST)] = 0,
) -> Response:
    shelf = shelf_of(request)
    check_range(since, "")
    check_range("", until)
    backward = reversed_range(since, until)  # which a form is while somebody fills it in
    days = {"since": _day(since), "until": _day(until, last=True)}
    near: tuple[str, ...] | None = None  # where the desk has no such topic, those written most like it
    try:
        topic = known_topic(shelf, topic)
    except UnknownTopic as error:
        near = error.near
    filters = {"topic": topic.strip(), "room": room, "status": status, **days}
    asked = {"state" if name == "status" else name: value for name, value in filters.items()}
    start, count = p * AT_ONCE, AT_ONCE + 1  # one more says whether there is a next page
    hits: list[Paper] = []
    if backward or near is not None:
        pass
    elif q.strip():
        hits = [one for one, _ in shelf.search(q, count, start=start, **asked)]
    elif any(filters.values()):
        hits = list(shelf.chosen(start=start, count=count, **asked))
    chosen = {"q": q, **filters}
    return page(
        request,
        "search.html",
        hits=hits[:AT_ONCE],
        chosen=chosen,
        first=start + 1,
        newer=_address(chosen, p - 1) if p else "",
        older=_address(chosen, p + 1) if len(hits) > AT_ONCE and p + 1 < LAST else "",
        rooms=ROOMS,
        states=(*STATES, IMPORTED),
        topics=[name for name, _ in shelf.topics[:TOPICS]],
        backward=backward,
        meant=None if near is None else [(one, _address({**chosen, "topic": one}, 0)) for one in near],
        by=shelf.finder.judges if q.strip() else "",
        note=shelf.finder.note if q.strip() else "",
    )


def _day(date: str, last: bool = False) -> str:
    """The first or the last day of a month or a year: a field for days shows nothing else."""
    if len(date) in (0, 10):
        return date
    year, month = int(date[:4]), int(date[5:] or (12 if last else 1))
    return f"{year:04}-{month:02}-{calendar.monthrange(year, month)[1] if last else 1:02}"


def _address(chosen: dict[str, str], number: int) -> str:
    """The same question, another page."""
    given = {name: value for name, value in chosen.items() if value}
    return f"/search?{urlencode(given | ({'p': str(number)} if number else {}))}"
