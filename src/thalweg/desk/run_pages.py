"""The list of runs, and the page of a run."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from markupsafe import Markup
from starlette.responses import Response

from thalweg.desk.run_api import ID
from thalweg.desk.run_findings import page_of, papers_of
from thalweg.desk.run_phases import phases as fitted_phases
from thalweg.desk.run_rows import rows_of
from thalweg.desk.run_source import run_of, source_of
from thalweg.desk.run_summary import (
    MOST,
    STATES,
    chosen,
    epoch_of,
    in_order,
    kind_of,
    left_out,
    overhead,
    seldom,
    settings,
    state_of,
    unit_of,
)
from thalweg.desk.views import page

if TYPE_CHECKING:
    from thalweg.watch import RunStore

router = APIRouter()
PAGE = 50  # runs on a page
Names = Annotated[list[str] | None, Query(max_length=64)]


@router.get("/runs", include_in_schema=False)
def runs(
    request: Request,
    q: Annotated[str, Query(max_length=200)] = "",
    state: Annotated[str, Query(max_length=40)] = "",
    before: Annotated[int, Query(ge=1, le=ID)] = ID,
) -> Response:
    source = source_of(request)
    if state and state not in STATES:
        raise HTTPException(400, f"state must be one of {', '.join(STATES)}; got {state!r}")
    about: dict[str, Any] = {
        "path": source.path,
        "rows": [],
        "states": STATES,
        "chosen_run": {"q": q, "state": state},
    }
    if not source.there:
        return page(request, "runs.html", **about)
    from thalweg.watch.store_tail import last_sign

    with source.open() as store:
        found = list(islice(_fitting(store, q, state, before), PAGE + 1))
        for one in found:
            if "unreadable" in one.about:
                source.damaged(one.about["unreadable"])
        about["rows"] = rows_of(store, found[:PAGE], source)
        about["mark"] = last_sign(store)
    about["any"] = about["mark"] > 0
    about["older"] = found[PAGE - 1].id if len(found) > PAGE else None
    about["first"] = before == ID
    return page(request, "runs.html", **about)


def _fitting(store: RunStore, words: str, state: str, before: int) -> Any:
    for one in store.newest("id < ?", before):
        if words.lower() in one.name.lower() and state in ("", kind_of(state_of(one))):
            yield one


@router.get("/runs/{run:int}", include_in_schema=False)
def one_run(
    request: Request,
    run: int,
    show: Names = None,
    start: Annotated[int | None, Query(alias="findings", ge=1, le=ID)] = None,
    every: Annotated[bool, Query(alias="all")] = False,
    phases: Annotated[str, Query(max_length=10)] = "",
    layers: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    from thalweg.watch.store_findings import StoredFindings
    from thalweg.watch.store_tail import last_row, layered_names

    source = source_of(request)
    with source.open() as store, store.moment():
        found = run_of(store, run, source)
        # Of the same moment as all else: what is stored while this page is made comes live.
        row = last_row(store)
        names = in_order(store.names(run))
        stored = StoredFindings(store, run, source.damaged)
        findings = page_of(stored, start or (1 if every else None))
        layered = layered_names(store, run)
    return page(
        request,
        "run.html",
        run=found,
        state=state_of(found),
        names=names,
        # A run that has only begun will have a loss, as most do.
        shown=chosen(names, show or ()) or ["loss"],
        most=MOST,
        unit=unit_of,
        layered=[name for name in names if name in layered],
        # What the address asks for has its place at once: nothing below it moves when it comes.
        phases=Markup(bytes(fitted_phases(request, run).body).decode()) if phases == "1" else "",
        awaited=layers in layered,
        findings=findings,
        papers=papers_of(request, [one for _, one, _ in findings.listed]),
        overhead=overhead(found),
        left_out=left_out(found),
        seldom=seldom(found),
        settings=settings(found),
        cursor=f"{findings.total}.{row}.{epoch_of(found)}",
    )
