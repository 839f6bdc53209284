"""Papers by day, week and month, the newest of all, and trending; every list has pages."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from thalweg.desk.findings_api import check_names
from thalweg.desk.paper import Paper
from thalweg.desk.paper_pages import Text
from thalweg.desk.periods import Period, name_in, period_of
from thalweg.desk.reading_order import ReadingOrder
from thalweg.desk.shelf import Shelf
from thalweg.desk.surviving import SurvivingRoute, shelf_of
from thalweg.desk.views import page
from thalweg.desk.voted_first import by_votes

router = APIRouter(include_in_schema=False, route_class=SurvivingRoute)
AT_ONCE = 30  # papers on a page
DAYS = (10,)  # how long the name of a day is: older and newer days are looked for among days
KINDS = {"date": "Day", "week": "Week", "month": "Month"}
PageNumber = Annotated[int, Query(ge=0, le=1_000_000)]
NearPage = Annotated[int, Query(ge=0, le=3000)]  # the papers before the page are counted through


class Link(NamedTuple):
    """Where a list goes on."""

    address: str
    text: str


@router.get("/papers")
def papers(
    request: Request, date: Text = "", week: Text = "", month: Text = "", p: PageNumber = 0
) -> Response:
    shelf = shelf_of(request)
    order = shelf.order
    if not (date or week or month):
        found = order.page(p * AT_ONCE, AT_ONCE)
        more = (p + 1) * AT_ONCE < order.count()
        return _list(
            request,
            "Newest papers",
            found,
            first=_address() if p else "",
            newer=Link(_address(p=p - 1), "Newer papers") if p else None,
            older=Link(_address(p=p + 1), "Older papers") if more else None,
            periods=_periods(order, "~"),
            **({} if p or order.count() > len(shelf.papers) else _results(shelf)),
        )
    period = period_of(date=date, week=week, month=month)
    found = by_votes(shelf, period, p * AT_ONCE, AT_ONCE, request.app.state.problems)
    more = (p + 1) * AT_ONCE < order.count_of(period)
    name = {period.kind: period.name}
    return _list(
        request,
        period.name,
        found,
        # The built-in catalog knows months only.
        undated=_of_months(request, period) if period.kind != "month" and p == 0 else {},
        first=_address(**name) if p else "",
        newer=Link(_address(**name, p=p - 1), f"Back in {period.name}") if p else _newer(order, period),
        older=Link(_address(**name, p=p + 1), f"More of {period.name}") if more else _older(order, period),
        periods=_periods(order, period.last),
        kind=period.kind,
    )


@router.get("/papers/trending")
def trending(request: Request, p: PageNumber = 0) -> Response:
    found = shelf_of(request).trending()
    start = p * AT_ONCE
    return _list(
        request,
        "Trending papers",
        found[start : start + AT_ONCE],
        first="/papers/trending" if p else "",
        newer=Link(_address("/papers/trending", p=p - 1), "Back") if p else None,
        older=Link(_address("/papers/trending", p=p + 1), "More") if start + AT_ONCE < len(found) else None,
        periods=_periods(shelf_of(request).order, "~"),
        kind="trending",
    )


@router.get("/papers/about")
def about(
    request: Request, topic: Text = "", room: Text = "", finding: Text = "", p: NearPage = 0
) -> Response:
    """All papers with a topic, a room and a finding."""
    topic = check_names(shelf_of(request), topic=topic, finding=finding)
    wanted = {"topic": topic, "room": room, "finding": finding}
    start = p * AT_ONCE
    found = shelf_of(request).chosen(**wanted, start=start, count=AT_ONCE + 1)
    here = "/papers/about"
    return _list(
        request,
        ", ".join(name for name in wanted.values() if name) or "All papers",
        found[:AT_ONCE],
        first=_address(here, **wanted) if p else "",
        newer=Link(_address(here, **wanted, p=p - 1), "Newer papers") if p else None,
        older=Link(_address(here, **wanted, p=p + 1), "Older papers") if len(found) > AT_ONCE else None,
        periods=_periods(shelf_of(request).order, "~"),
        kind="about",
    )


def _list(request: Request, title: str, papers: Any, **about: Any) -> Response:
    known: dict[str, Any] = {"undated": {}, "periods": [], "kind": "newest"}
    return page(request, "papers.html", title=title, papers=papers, **(known | about))


def _results(shelf: Shelf) -> dict[str, int]:
    """How much was measured: the newest papers of the catalog alone are mostly planned."""
    return {"done": sum(one.measured is not None for one in shelf.papers), "known": len(shelf.papers)}


def _of_months(request: Request, period: Period) -> dict[str, tuple[Paper, ...]]:
    found = {month: shelf_of(request).of_month(month) for month in period.months}
    return {month: papers for month, papers in found.items() if papers}


def _older(order: ReadingOrder, period: Period) -> Link | None:
    """The period of the same kind before this one that has papers; the month where no more days are known."""
    kind, date = period.kind, order.older(period.first, DAYS if period.kind != "month" else (7, 10))
    if not date:
        kind, date = "month", order.older(period.first[:7])
    return Link(_address(**{kind: name_in(kind, date)}), f"Older: {name_in(kind, date)}") if date else None


def _newer(order: ReadingOrder, period: Period) -> Link | None:
    kind, date = period.kind, order.newer(period.last, DAYS if period.kind != "month" else (7, 10))
    if not date:
        kind, date = "month", order.newer(f"{period.last[:7]}-31")
    return Link(_address(**{kind: name_in(kind, date)}), f"Newer: {name_in(kind, date)}") if date else None


def _periods(order: ReadingOrder, last: str) -> list[tuple[str, Link]]:
    """The day, the week and the month that end with the last paper up to a date."""
    day = order.older(last + "~", DAYS)
    dates = {kind: day if kind != "month" else order.older(last + "~") for kind in KINDS}
    return [
        (kind, Link(_address(**{kind: name_in(kind, date)}), KINDS[kind]))
        for kind, date in dates.items()
        if date
    ]


def _address(path: str = "/papers", **about: Any) -> str:
    asked = urlencode({name: value for name, value in about.items() if value})
    return f"{path}?{asked}" if asked else path
