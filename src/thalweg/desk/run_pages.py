"""The list of runs, the page of a run, and its findings: fragments that are the same live and reloaded."""

from __future__ import annotations

from html import escape
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from markupsafe import Markup
from starlette.responses import Response

from thalweg.desk.run_api import ID
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
    settings,
    state_of,
    unit_of,
)
from thalweg.desk.views import page

if TYPE_CHECKING:
    from thalweg.watch import Finding, RunStore

router = APIRouter()
PAGE = 50  # runs on a page
FINDINGS = 25  # of a run on its page, unless all are asked for
MARKED = 400  # further ones that have a mark on the curves
WEIGHT = 60_000  # bytes of HTML that they take, about
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
    every: Annotated[bool, Query(alias="all")] = False,
    phases: Annotated[str, Query(max_length=10)] = "",
    layers: Annotated[str, Query(max_length=200)] = "",
) -> Response:
    from thalweg.watch.store_tail import last_row, layered_names

    source = source_of(request)
    with source.open() as store:
        found = run_of(store, run, source)
        # Taken first: what is stored while this page is made comes live, once more rather than never.
        row = last_row(store)
        names = in_order(store.names(run))
        findings = store.findings(run, damaged=source.damaged)
        layered = layered_names(store, run)
    firsts = {one.name: number for number, one in reversed([*enumerate(findings, 1)])}
    kept = [(number, one, firsts[one.name] == number) for number, one in enumerate(findings, 1)]
    hidden = [] if every else kept[: len(kept) - _shown(findings)]
    kept = kept[len(hidden) :]
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
        findings=kept,
        total=len(findings),
        hidden_critical=sum(one.severity == "critical" for _, one, _ in hidden),
        earlier=[(number, one.step, one.name, one.severity) for number, one, _ in hidden[-MARKED:]],
        papers=_papers(request, [one for _, one, _ in kept]),
        overhead=overhead(found),
        left_out=left_out(found),
        settings=settings(found),
        cursor=f"{len(findings)}.{row}.{epoch_of(found)}",
    )


@router.get("/runs/{run:int}/findings/{number:int}", include_in_schema=False)
def one_finding(request: Request, run: int, number: int) -> Response:
    """A finding as the page of its run shows it; they are counted from 1."""
    source = source_of(request)
    with source.open() as store:
        run_of(store, run, source)
        found = store.findings(run, damaged=source.damaged)[:number]
    if len(found) < number or number < 1:
        raise HTTPException(404, f"run {run} has no finding {number}")
    one = found[-1]
    first = all(before.name != one.name for before in found[:-1])
    return page(request, "_finding.html", one=one, number=number, first=first, papers=_papers(request, [one]))


def _shown(findings: list[Finding]) -> int:
    """How many of the latest a page shows."""
    weights = accumulate(_weight(one) for one in reversed(findings[-FINDINGS:]))
    return max(sum(weight <= WEIGHT for weight in weights), min(1, len(findings)))


def _weight(one: Finding) -> int:
    """About how many bytes of HTML a finding takes."""
    texts = [one.message, *one.evidence, *one.layers[:30]]
    texts += [text for remedy in one.remedies for text in (remedy.title, remedy.code)]
    frames = 900 + 60 * len(one.evidence) + 400 * len(one.remedies)
    return frames + sum(len(escape(text).encode()) for text in texts)


def _papers(request: Request, findings: list[Finding]) -> dict[str, Any]:
    """Papers that findings and their remedies name, as far as the desk knows them."""
    keys = {key for one in findings for key in (*one.papers, *(remedy.paper for remedy in one.remedies))}
    known = request.app.state.shelf.by_id
    return {key: known[key] for key in keys if key in known}
