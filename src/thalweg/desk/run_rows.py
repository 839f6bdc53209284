"""A row of the list of runs: the same on the page and in what comes live."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from thalweg.desk.run_source import RunSource
from thalweg.desk.run_summary import QUIET, RUNNING, epoch_of, kind_of, overhead, state_of

if TYPE_CHECKING:
    from thalweg.watch import RunInfo, RunStore

WIDE, HIGH = 96, 24  # of the small curve, in its own units
POINTS = 64
KEPT = 1000  # small curves of runs that have ended
_SPARKS: dict[tuple[Any, ...], str] = {}


def rows_of(store: RunStore, runs: Sequence[RunInfo], source: RunSource) -> list[dict[str, Any]]:
    """What the list shows of these runs, with ``html``, the row itself."""
    from thalweg.desk.views import TEMPLATES
    from thalweg.watch.store_tail import finding_counts

    counts = finding_counts(store, [one.id for one in runs])
    template = TEMPLATES.env.get_template("_run_row.html")
    rows = []
    for one in runs:
        state = state_of(one)
        row = {
            "id": one.id,
            "name": one.name,
            "run": one,
            "state": state,
            "steps": one.steps,
            "kind": kind_of(state).replace(" ", "-"),
            "live": state == RUNNING,
            "findings": counts[one.id],
            "overhead": overhead(one),
            "spark": _spark(store, one, source),
        }
        rows.append({**row, "html": template.render(one=row)})
    return rows


def changed_rows(
    store: RunStore, mark: float, live: Iterable[dict[str, Any]], source: RunSource, *, anew: bool
) -> list[dict[str, Any]]:
    """Rows of runs that have written or ended since ``mark``, or have fallen silent; oldest first.

    Args:
        live: rows that were shown as running.
        anew: nobody knows yet which were: all that could have fallen silent since are given as well.
    """
    now = time.time()
    silent = [one["run"].id for one in live if state_of(one["run"], now) != RUNNING]
    marks = ", ".join("?" * len(silent))
    where = f"seen >= ? or ended >= ? or id in ({marks})"
    values: list[Any] = [mark, mark, *silent]
    if anew:
        where += " or (outcome is null and seen >= ?)"
        values.append(mark - 2 * QUIET)
    return rows_of(store, list(store.newest(where, *values)), source)[::-1]


def _spark(store: RunStore, run: RunInfo, source: RunSource) -> str:
    """The small line, drawn once of a run that has ended; a damaged one does not take the list down."""
    key = str(source.path), source.file, run.id, epoch_of(run), run.ended
    if run.ended is not None and key in _SPARKS:
        return _SPARKS[key]
    try:
        drawn = spark(store, run.id)
    except (sqlite3.Error, TypeError) as error:
        source.damaged(f"the loss of run {run.id} cannot be read: {error}")
        return ""
    if run.ended is not None:
        if len(_SPARKS) >= KEPT:
            _SPARKS.clear()
        _SPARKS[key] = drawn
    return drawn


def spark(store: RunStore, run: int) -> str:
    """Points of a small line of the loss, for SVG, or nothing; of its logarithm if it spans much."""
    found = [(one.step, one.value) for one in store.overview(run, "loss", POINTS)]
    if len(found) < 2:
        return ""
    values = [value for _, value in found]
    if min(values) > 0 and max(values) > 20 * min(values):
        values = [math.log(value) for value in values]
    low, high = min(values), max(values)
    start, end = found[0][0], found[-1][0]
    across = WIDE / max(end - start, 1)
    up = (HIGH - 2) / (high - low) if high > low else 0.0
    return " ".join(
        f"{(step - start) * across:.1f},{HIGH - 1 - (value - low) * up:.1f}"
        for (step, _), value in zip(found, values, strict=True)
    )
