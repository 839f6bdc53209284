"""Pages about papers: one paper, topics, rooms, findings."""

from __future__ import annotations

import tempfile
import threading
from functools import lru_cache
from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.responses import RedirectResponse, Response

from thalweg.desk.paper import Paper
from thalweg.desk.shelf import Shelf
from thalweg.desk.troubles import troubles
from thalweg.desk.views import page
from thalweg.papers.entry import ROOMS, UnknownPaper

router = APIRouter(include_in_schema=False)
IMPORTED = 5  # papers from outside that are named under a finding
DRAWING = threading.Lock()  # one plot at a time: a second takes as long, and both take the pages' time
Text = Annotated[str, Query(max_length=400)]


def shelf_of(request: Request) -> Shelf:
    return request.app.state.shelf


def paper_of(request: Request, name: str) -> Paper:
    try:
        return shelf_of(request).paper(name)
    except UnknownPaper as error:
        raise HTTPException(404, str(error)) from None


@router.get("/")
def home() -> Response:
    return RedirectResponse("/papers", 303)


@router.get("/papers/{name}")
def paper(request: Request, name: str) -> Response:
    found = paper_of(request, name)
    return page(request, "paper.html", paper=found, similar=shelf_of(request).similar(found))


@router.get("/papers/{name}/plot.svg")
def plot(request: Request, name: str, setting: Text = "") -> Response:
    found = paper_of(request, name)
    if found.measured is None or (setting and setting not in found.measured.raw["settings"]):
        raise HTTPException(404, f"nothing of this name was measured for {name!r}")
    with DRAWING:
        drawn = _drawn(found, setting)
    return Response(drawn, media_type="image/svg+xml", headers={"Cache-Control": "max-age=3600"})


@lru_cache(maxsize=256)
def _drawn(paper: Paper, setting: str) -> bytes:
    from thalweg.studies.plot import plot_evidence

    assert paper.measured is not None
    with tempfile.TemporaryDirectory() as folder:
        return plot_evidence(paper.measured.raw, f"{folder}/plot.svg", setting or None).read_bytes()


@router.get("/topics")
def topics(request: Request) -> Response:
    return page(request, "topics.html", topics=shelf_of(request).topics)


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
