"""Runs and what was found in them, as JSON; their curves and events are in files of their own.

Rows of a store that others wrote are given as they are: the shapes are declared, and not imposed on them.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from thalweg.desk.api_shapes import FindingShape, RunShape, WholeRun
from thalweg.desk.run_source import run_of, source_of
from thalweg.desk.run_summary import in_order, left_out, overhead, plain_finding, settings, state_of

if TYPE_CHECKING:
    from thalweg.watch import RunInfo

router = APIRouter(prefix="/api/runs")
ID = 2**63 - 1  # the largest that SQLite counts to
AT_ONCE = 1000  # findings in an answer


@router.get("", tags=["runs"], response_model=list[RunShape])
def runs(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    before: Annotated[int, Query(ge=1, le=ID)] = ID,
) -> JSONResponse:
    """Runs of the store, the newest first; ``before`` is an id, for those that came earlier."""
    source = source_of(request)
    if not source.there:
        return JSONResponse([])
    with source.open() as store:
        return JSONResponse([_record(one) for one in islice(store.newest("id < ?", before), limit)])


@router.get("/{run:int}", tags=["runs"], response_model=WholeRun)
def run(request: Request, run: int) -> JSONResponse:
    """One run, and the names of the readings that it has curves of."""
    from thalweg.watch.store_tail import finding_counts, layered_names

    source = source_of(request)
    with source.open() as store:
        found = run_of(store, run, source)
        layered = layered_names(store, run)
        more = {
            "readings": in_order(store.names(run)),
            "layered": in_order(layered),
            "left_out": left_out(found),
            "findings": finding_counts(store, [run])[run],
        }
    return JSONResponse(_record(found) | more)


@router.get("/{run}/findings", tags=["findings"], response_model=list[FindingShape])
def findings(
    request: Request,
    run: int,
    after: Annotated[int, Query(ge=0, le=ID)] = 0,
    limit: Annotated[int, Query(ge=1, le=AT_ONCE)] = AT_ONCE,
) -> JSONResponse:
    """What was found in a run, in order; ``after``: how many are known already.

    Where there are more than ``limit``, the header ``Link`` says where the rest is.
    """
    source = source_of(request)
    with source.open() as store:
        run_of(store, run, source)
        found = store.findings(run, after, most=limit + 1, damaged=source.damaged)
    headers = {}
    if len(found) > limit:
        rest = request.url.include_query_params(after=after + limit)
        headers["Link"] = f'<{rest.path}?{rest.query}>; rel="next"'
    return JSONResponse([plain_finding(one) for one in found[:limit]], headers=headers)


def _record(one: RunInfo) -> dict[str, Any]:
    return {
        "id": one.id,
        "name": one.name,
        "started": one.started,
        "ended": one.ended,
        "steps": one.steps,
        "state": state_of(one),
        "overhead": overhead(one),
        "settings": settings(one),
    }
