"""What is new in runs, as server-sent events: of one run, and of the list of runs."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sse_starlette.event import ServerSentEvent
from sse_starlette.sse import EventSourceResponse, SendTimeoutError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from thalweg.desk.run_lookout import Lookout
from thalweg.desk.run_source import run_of, source_of
from thalweg.desk.run_summary import MOST
from thalweg.desk.run_viewer import Cursor, ListViewer, RunViewer, Viewer

router = APIRouter(prefix="/api/runs", tags=["runs"])
HEARTBEAT = 15  # seconds
EVENTS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events, as long as somebody reads",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
PATIENCE = 20.0  # seconds that a viewer may take to read what was sent


class Stream(EventSourceResponse):
    """Events with a heartbeat; a viewer who does not read is left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            return


@router.get("/events", response_class=Response, responses=EVENTS)
async def list_events(request: Request, after: Annotated[str, Query(max_length=40)] = "") -> Stream:
    """Rows of the list that are new or have changed, as ``run``; ``after`` is the id of the last event.

    Where no run has been stored yet, the first one is waited for.
    """
    mark = request.headers.get("last-event-id") or after
    seen = float(mark) if mark.replace(".", "", 1).isdecimal() else time.time()
    if source_of(request).path is None or source_of(request).there:
        await run_in_threadpool(_opened, request)
    return _stream(request, ListViewer(seen))


@router.get("/{run}/events", response_class=Response, responses=EVENTS)
async def events(
    request: Request,
    run: int,
    after: Annotated[str, Query(max_length=80)] = "",
    show: Annotated[list[str] | None, Query(max_length=MOST)] = None,
) -> Stream:
    """What is new in a run behind a cursor.

    An event without a name is a heartbeat. ``names`` are the readings that the run has, ``readings`` new
    points of the chosen ones, ``finding`` a finding with its number, ``progress`` steps, state and overhead;
    ``trouble`` says that the store cannot be read just now, and ``anew`` that the run was resumed or
    replaced, or is far ahead of the cursor, so that everything has to be asked for again.

    ``after``: the id of the last event, or how many findings are known; a client that comes back says so by
    ``Last-Event-ID``. Without an event's id it begins with the latest thousand findings, whose numbers
    say how many were before. ``show``: a reading that is wanted, at most six times; one that the run does not
    have yet may still come.
    """
    cursor = Cursor.parse(request.headers.get("last-event-id") or after)
    await run_in_threadpool(_opened, request, run)
    return _stream(request, RunViewer(run, tuple(dict.fromkeys(show or ())), cursor))


def _opened(request: Request, run: int | None = None) -> None:
    """The error page at once, where there is no such run; the list may be watched before the first run."""
    source = source_of(request)
    if run is None and source.path is not None and not source.there:
        return
    with source.open() as store:
        if run is not None:
            run_of(store, run, source)


def _stream(request: Request, viewer: Viewer) -> Stream:
    lookout: Lookout = request.app.state.lookout
    lookout.check_room()
    every = HEARTBEAT
    return Stream(
        _told(lookout, viewer),
        ping=every,
        # A comment would keep the connection open, but no page can hear that it stopped.
        ping_message_factory=lambda: ServerSentEvent(json.dumps({"every": every})),
        send_timeout=PATIENCE,
    )


async def _told(lookout: Lookout, viewer: Viewer) -> AsyncIterator[dict[str, Any]]:
    # Here, not before: an answer that never begins would leave its viewer behind.
    lookout.join(viewer)
    try:
        async for one in viewer.news():
            yield one
    finally:
        lookout.leave(viewer)
