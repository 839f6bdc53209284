"""Pages about papers: one paper, topics, rooms, findings."""

from __future__ import annotations

import tempfile
import threading
from functools import lru_cache
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.responses import RedirectResponse, Response

from thalweg._core.checks import check_choice
from thalweg.desk.evidence_rows import evidence_stamp
from thalweg.desk.paper import Paper
from thalweg.desk.surviving import READ, SurvivingRoute, shelf_of
from thalweg.desk.troubles import troubles
from thalweg.desk.views import page
from thalweg.papers.entry import ROOMS, UnknownPaper

router = APIRouter(include_in_schema=False, route_class=SurvivingRoute)
IMPORTED = 5  # papers from outside that are named under a finding
TOPICS = 120  # those with the most papers, which stand together
DRAWING = threading.Lock()  # one plot at a time: a second takes as long, and both take the pages' time
Text = Annotated[str, Query(max_length=400)]


def paper_of(request: Request, name: str) -> Paper:
    try:
        return shelf_of(request).paper(name)
    except UnknownPaper as error:
        unread = "" if request.method in READ else request.state.unreadable
        if unread:
            raise HTTPException(503, f"{unread}; the catalog says: {error}") from None
        raise HTTPException(404, str(error)) from None


@router.get("/")
def home() -> Response:
    return RedirectResponse("/papers", 303)


# Before the page, whose name may hold anything: old arXiv ids have a slash in them.
@router.get("/papers/{name:path}/plot.svg")
def plot(request: Request, name: str, setting: Text = "") -> Response:
    found = paper_of(request, name)
    if found.measured is None or (setting and setting not in found.measured.raw["settings"]):
        raise HTTPException(404, f"nothing of this name was measured for {name!r}")
    with DRAWING:
        drawn = _drawn(found, setting, evidence_stamp())
    return Response(drawn, media_type="image/svg+xml", headers={"Cache-Control": "max-age=3600"})


@router.get("/papers/{name:path}")
def paper(request: Request, name: str) -> Response:
    """The page of a paper; an id with a slash in it leads to the address where ``~`` stands for it."""
    if not name:
        return RedirectResponse("/papers", 303)
    found = paper_of(request, name)
    if "/" in name:
        return RedirectResponse(f"/papers/{found.key}", 303)
    return page(request, "paper.html", paper=found, similar=shelf_of(request).similar(found))


@lru_cache(maxsize=256)
def _drawn(paper: Paper, setting: str, measured: int) -> bytes:
    """``measured`` changes when anything was measured again, by which this forgets what it drew."""
    from thalweg.studies.plot import plot_evidence

    assert paper.measured is not None
    with tempfile.TemporaryDirectory() as folder:
        return plot_evidence(paper.measured.raw, f"{folder}/plot.svg", setting or None).read_bytes()


@router.get("/topics")
def topics(request: Request, letter: Annotated[str, Query(max_length=1)] = "") -> Response:
    """Those with the most papers, or all that begin with a letter, by name."""
    known = shelf_of(request).topics
    letters = sorted({topic[0] for topic, _ in known})
    if letter:
        check_choice("letter", letter, tuple(letters))
    found = sorted(one for one in known if one[0][0] == letter) if letter else known[:TOPICS]
    more = len(known) - len(found)
    return page(request, "topics.html", topics=found, letter=letter, letters=letters, more=more)


@router.get("/methods")
def methods(request: Request) -> Response:
    shelf = shelf_of(request)
    rooms = {room: [one for one in shelf.papers if one.room == room] for room in ROOMS}
    return page(request, "methods.html", rooms={room: found for room, found in rooms.items() if found})


@router.get("/findings")
def findings(request: Request) -> Response:
    shelf = shelf_of(request)
    imported = shelf.addressing(IMPORTED)
    return page(request, "findings.html", findings=shelf.findings, about=troubles(), imported=imported)
