"""Curves of a run as JSON, of few points whatever its length, as a whole or a window of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query, Request

from thalweg.desk.api_shapes import CurveShape, LayersShape
from thalweg.desk.run_source import run_of, source_of

if TYPE_CHECKING:
    from thalweg.watch import RunStore

router = APIRouter(prefix="/api/runs/{run}", tags=["runs"])
LAST = 2**53 - 1  # the last step that a browser tells from the next; other programs may have stored some
Name = Annotated[str, Query(max_length=300)]
Points = Annotated[int, Query(ge=8, le=5000)]
Step = Annotated[int, Query(ge=0, le=LAST)]
Curve = dict[str, list[Any]]


@router.get("/curve", response_model=CurveShape)
def curve(
    request: Request,
    run: int,
    name: Name = "loss",
    points: Points = 600,
    low: Annotated[int, Query(alias="from", ge=0, le=LAST)] = 0,
    to: Step = LAST,
    after: Annotated[int, Query(ge=-1, le=LAST - 1)] = -1,
) -> Curve:
    """A curve, thinned to ``points`` at most, with the spikes of the whole; null where it is not finite.

    ``from`` and ``to``: first and last step of a window, which is then given in full detail. ``after``: the
    last step that is known already; only what lies behind it comes.
    """
    source = source_of(request)
    with source.open() as store:
        run_of(store, run, source)
        return curve_of(store, run, name, points, max(low, after + 1), to)


@router.get("/layers", response_model=LayersShape)
def layers(
    request: Request,
    run: int,
    name: Name,
    points: Points = 200,
    low: Annotated[int, Query(alias="from", ge=0, le=LAST)] = 0,
    to: Step = LAST,
    after: Annotated[int, Query(ge=-1, le=LAST - 1)] = -1,
) -> dict[str, Any]:
    """A reading by layer, at the steps at which the curve of the whole model has its points."""
    from thalweg.watch.store_tail import layers_at

    source = source_of(request)
    with source.open() as store:
        run_of(store, run, source)
        steps = [one.step for one in store.overview(run, name, points, low=max(low, after + 1), high=to)]
        found = layers_at(store, run, name, steps)
    return {"step": steps, "layers": {layer: plain(values) for layer, values in found.items()}}


def curve_of(store: RunStore, run: int, name: str, points: int, low: int = 0, high: int = LAST) -> Curve:
    """Steps and values, with one null in each stretch in which the reading was not finite, or is damaged."""
    found: list[tuple[int, float | None]] = [
        (one.step, one.value if isinstance(one.value, int | float) else None)
        for one in store.overview(run, name, points, low=low, high=high)
    ]
    found += [(step, None) for step in store.gaps(run, name, points, low=low, high=high)]
    found.sort(key=lambda point: point[0])
    kept = [
        point
        for number, point in enumerate(found)
        if point[1] is not None or number == 0 or found[number - 1][1] is not None
    ]
    return {"step": [step for step, _ in kept], "value": [value for _, value in kept]}


def thin(points: Sequence[tuple[int, float]], most: int) -> Curve:
    """The same of points in hand: those of least and greatest value of every stretch, gaps as null."""
    kept = set(range(len(points)))
    if len(points) > most:
        size = -(-len(points) // (most // 3))
        kept = {len(points) - 1}
        for start in range(0, len(points), size):
            part = range(start, min(start + size, len(points)))
            finite = [n for n in part if math.isfinite(points[n][1])]
            kept |= {next((n for n in part if not math.isfinite(points[n][1])), start)}
            if finite:
                kept |= {min(finite, key=lambda n: points[n][1]), max(finite, key=lambda n: points[n][1])}
    taken = [points[n] for n in sorted(kept)]
    return {"step": [step for step, _ in taken], "value": plain(value for _, value in taken)}


def plain(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, which knows no NaN."""
    return [value if math.isfinite(value) else None for value in values]
