"""Runs beside each other: one reading of several runs in one plot, and a table of what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, HTTPException, Query, Request
from starlette.responses import Response

from thalweg.desk.run_source import run_of, source_of
from thalweg.desk.run_summary import (
    MOST,
    differing,
    in_order,
    kind_of,
    overhead,
    state_of,
    unit_of,
)
from thalweg.desk.views import page

if TYPE_CHECKING:
    from thalweg.watch import Reading, RunStore

router = APIRouter()
# Readings of which more is better.
GAIN = ("accuracy", "rank", "coherence", "alignment")


@router.get("/runs/compare", include_in_schema=False)
def compare(
    request: Request,
    run: Annotated[list[int] | None, Query(max_length=64)] = None,
    reading: Annotated[str, Query(max_length=300)] = "",
) -> Response:
    from thalweg.watch.store_findings import StoredFindings
    from thalweg.watch.store_tail import finding_counts

    ids = list(dict.fromkeys(run or ()))
    if len(ids) > MOST:
        raise HTTPException(400, f"run must name at most {MOST} runs to compare, got {len(ids)}")
    if not ids:
        return page(request, "compare.html", rows=[], most=MOST)
    source = source_of(request)
    with source.open() as store:
        infos = [run_of(store, one, source) for one in ids]
        having = {one: set(store.names(one)) for one in ids}
        names = in_order(set().union(*having.values()))
        if reading and reading not in names:
            raise HTTPException(
                400, f"reading must be one of {', '.join(names) or 'none yet'}; got {reading!r}"
            )
        reading = reading or (names[0] if names else "")
        counts = finding_counts(store, ids)
        rows = [
            {
                "run": one,
                "state": state_of(one),
                "kind": kind_of(state_of(one)).replace(" ", "-"),
                "findings": counts[one.id],
                "names": [*StoredFindings(store, one.id).counts()],
                "overhead": overhead(one),
                **_ends(store, one.id, reading),
            }
            for one in infos
        ]
    return page(
        request,
        "compare.html",
        rows=rows,
        names=names,
        reading=reading,
        unit=unit_of(reading),
        best=_best(reading),
        differing=differing(infos),
        mark=max(max(one.seen, one.ended or 0.0) for one in infos),
        most=MOST,
    )


def _best(reading: str) -> str:
    return "greatest" if any(word in reading for word in GAIN) else "least"


def _ends(store: RunStore, run: int, reading: str) -> dict[str, Reading | bool | None]:
    """The last finite reading and the best, which few points of the whole course hold; ``broken``: it is
    not finite any more.
    """
    found = store.overview(run, reading, 16) if reading else []
    behind = found[-1].step + 1 if found else 0
    broken = bool(reading and store.gaps(run, reading, 1, low=behind))
    if not found:
        return {"last": None, "top": None, "broken": broken}
    pick = max if _best(reading) == "greatest" else min
    return {"last": found[-1], "top": pick(found, key=lambda one: one.value), "broken": broken}
