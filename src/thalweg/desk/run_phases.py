"""The phases of a run, fitted when somebody asks, once for each state of the run."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from thalweg.desk.run_source import run_of, source_of
from thalweg.desk.run_summary import epoch_of
from thalweg.desk.views import page

if TYPE_CHECKING:
    from thalweg.watch import RunPhases

router = APIRouter()
KEPT = 32  # fits
GROWTH = 1.05  # a run that goes on is fitted anew once it is so much longer
MOST_CHANGES = 3

# One at a time: a fit takes a second of a processor, and asking again must not take another.
_ONE = threading.Lock()
_FITTED: OrderedDict[tuple[Any, ...], tuple[int, RunPhases | str]] = OrderedDict()


@router.get("/runs/{run:int}/phases", include_in_schema=False)
def phases(request: Request, run: int) -> Response:
    """The fitted phases as a fragment of the run's page, with their bands as data; or why there are none."""
    source = source_of(request)
    with source.open() as store:
        info = run_of(store, run, source)
        key = (str(source.path), source.file, run, epoch_of(info))
        with _ONE:
            steps, found = _FITTED.get(key, (0, ""))
            if not found or info.steps > GROWTH * steps or (info.outcome and info.steps != steps):
                from thalweg.watch.latent_phases import phases_of_run

                try:
                    found = phases_of_run(store, run)
                except ValueError as error:
                    found = str(error)
                _FITTED[key] = info.steps, found
            _FITTED.move_to_end(key)
            while len(_FITTED) > KEPT:
                _FITTED.popitem(last=False)
    if isinstance(found, str):
        return page(request, "_phases.html", why=found, found=None)
    return page(
        request, "_phases.html", found=found, marks=_marks(found), arrows=_arrows(found), most=MOST_CHANGES
    )


def _marks(found: RunPhases) -> str:
    """The bands for the script that draws them: state, first and last step."""
    return ";".join(f"{one.state},{one.first},{one.last}" for one in found.phases)


def _arrows(found: RunPhases) -> list[dict[str, Any]]:
    """The map: states in a row from left to right, forward transitions as arcs above, others below."""
    arrows = []
    for one in found.transitions:
        start, end = 40 + 80 * one.source, 40 + 80 * one.target
        forward = end > start
        side = 1 if forward else -1
        high = 60 - side * (14 + 11 * abs(one.target - one.source))
        edge = 60 - side * 15
        path = f"M{start + 5 * side},{edge} Q{(start + end) / 2},{2 * high - edge} {end - 5 * side},{edge}"
        arrows.append({"path": path, "x": (start + end) / 2, "y": high + (-4 if forward else 12), "one": one})
    return arrows
