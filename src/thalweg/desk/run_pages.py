"""Run pages: every run of a store, its curves downsampled here, and what is new as server-sent events."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from sse_starlette.sse import EventSourceResponse
from starlette.responses import Response

from thalweg.desk.views import page

if TYPE_CHECKING:
    from thalweg.watch import Finding, RunStore

router = APIRouter()
EVERY = 0.5  # seconds between two looks at a run that goes on
QUIET = 60.0  # a run that has said nothing for so long is taken for killed
FIRST = ("loss", "test accuracy", "test loss", "gradient norm", "sharpness")


@contextmanager
def opened(request: Request) -> Iterator[RunStore]:
    """The run store, opened to read for one answer."""
    from thalweg.watch import RunStore

    path = request.app.state.store
    if path is None or not path.is_file():
        raise HTTPException(404, "no run has been stored yet: train with thalweg.watch(..., store=PATH)")
    with RunStore(path) as store:
        yield store


def run_of(store: RunStore, run: int) -> Any:
    for one in store.runs():
        if one.id == run:
            return one
    raise HTTPException(404, f"no run has the id {run}")


def _place(name: str) -> tuple[int, str]:
    """What people look at first comes first."""
    return FIRST.index(name) if name in FIRST else len(FIRST), name


def state_of(run: Any) -> str:
    if run.outcome is not None:
        return run.outcome
    return "running" if time.time() - run.seen < QUIET else "not heard of any more"


@router.get("/runs", include_in_schema=False)
def runs(request: Request) -> Response:
    path = request.app.state.store
    if path is None or not path.is_file():
        return page(request, "runs.html", runs=[], path=path)
    with opened(request) as store:
        rows = [
            {"run": one, "state": state_of(one), "findings": len(store.findings(one.id))}
            for one in reversed(store.runs())
        ]
    return page(request, "runs.html", runs=rows, path=path)


@router.get("/runs/{run}", include_in_schema=False)
def one_run(request: Request, run: int) -> Response:
    with opened(request) as store:
        found = run_of(store, run)
        names = sorted(store.names(run), key=_place)
        findings = store.findings(run)
    papers = {key: request.app.state.shelf.by_id.get(key) for one in findings for key in one.papers}
    about = {"run": found, "state": state_of(found), "names": names, "findings": findings, "papers": papers}
    return page(request, "run.html", **about)


@router.get("/api/runs", tags=["runs"])
def list_runs(request: Request) -> list[dict[str, Any]]:
    """Every run of the store, the newest first."""
    if request.app.state.store is None or not request.app.state.store.is_file():
        return []
    with opened(request) as store:
        return [
            {
                "id": one.id,
                "name": one.name,
                "started": one.started,
                "steps": one.steps,
                "state": state_of(one),
            }
            for one in reversed(store.runs())
        ]


@router.get("/api/runs/{run}/curve", tags=["runs"])
def curve(
    request: Request,
    run: int,
    name: Annotated[str, Query(max_length=200)] = "loss",
    points: Annotated[int, Query(ge=8, le=5000)] = 600,
) -> dict[str, list[float]]:
    """A curve of at most ``points`` points whose spikes are those of the whole."""
    with opened(request) as store:
        run_of(store, run)
        found = store.overview(run, name, points)
    return {"step": [one.step for one in found], "value": [one.value for one in found]}


@router.get("/api/runs/{run}/findings", tags=["findings"])
def findings(request: Request, run: int) -> list[dict[str, Any]]:
    """What was found in a run, in order."""
    with opened(request) as store:
        run_of(store, run)
        return [plain(one) for one in store.findings(run)]


def plain(one: Finding) -> dict[str, Any]:
    """A finding as JSON, which knows no NaN."""
    return json.loads(json.dumps(one.as_dict()), parse_constant=lambda _: None)


@router.get("/api/runs/{run}/events", tags=["runs"], response_class=EventSourceResponse)
async def events(request: Request, run: int, after: Annotated[int, Query(ge=0)] = 0) -> EventSourceResponse:
    """What is new in a run: ``progress`` with its steps and state, and ``finding`` for each new one.

    ``after``: how many findings are known; a client that comes back says so by ``Last-Event-ID``.
    """
    last = request.headers.get("last-event-id", "")
    known = int(last) if last.isdigit() else after
    with opened(request) as store:
        run_of(store, run)
    return EventSourceResponse(_news(request, run, known))


async def _news(request: Request, run: int, known: int) -> AsyncIterator[dict[str, Any]]:
    said: tuple[Any, ...] = ()
    while not await request.is_disconnected():
        info, found = await asyncio.to_thread(_look, request, run)
        for one in found[known:]:
            known += 1
            yield {"event": "finding", "id": str(known), "data": json.dumps(plain(one))}
        state = state_of(info)
        if (now := (info.steps, state)) != said:
            said = now
            yield {
                "event": "progress",
                "id": str(known),
                "data": json.dumps({"steps": info.steps, "state": state}),
            }
        if state != "running":
            return
        await asyncio.sleep(EVERY)


def _look(request: Request, run: int) -> tuple[Any, list[Finding]]:
    with opened(request) as store:
        return run_of(store, run), store.findings(run)
