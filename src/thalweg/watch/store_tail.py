"""What a reader that comes back wants of a run store: only what has come since, and layers of a few steps."""

from __future__ import annotations

import array
import json
import math
from collections.abc import Iterable, Sequence

from thalweg.watch.store import RunStore

__all__ = ["layers_at", "readings_behind"]

# SQLite takes so many values in one statement whatever it was built with.
AT_ONCE = 500


def last_row(store: RunStore) -> int:
    """The cursor behind everything that is stored now."""
    (found,) = store.db.execute("select max(rowid) from readings").fetchone()
    return found or 0


def last_sign(store: RunStore) -> float:
    """When any run last wrote or ended, in epoch seconds; 0 where there is none."""
    real = "max(case when typeof({0}) in ('real', 'integer') then {0} else 0.0 end)"
    query = f"select {real.format('seen')}, {real.format('ended')} from runs"
    return max(one or 0.0 for one in store.db.execute(query).fetchone())


def layered_names(store: RunStore, run: int) -> set[str]:
    """Readings of a run that have layers."""
    query = "select distinct name from series where run = ? and layers != '[]'"
    return {name for (name,) in store.db.execute(query, (run,))}


def finding_counts(store: RunStore, runs: Sequence[int]) -> dict[int, int]:
    """How many findings each of some runs has."""
    query = f"select run, count(*) from findings where run in ({_marks(runs)}) group by run"
    return dict.fromkeys(runs, 0) | dict(store.db.execute(query, tuple(runs)))


def readings_behind(
    store: RunStore, run: int, row: int, names: Iterable[str]
) -> dict[str, list[tuple[int, float]]]:
    """By name, (step, value) of what was stored behind the cursor ``row``, in the order in which it came.

    Values that are not finite are NaN. A run that is resumed loses rows and may use their numbers again: a
    cursor is good for as long as ``about["resumed"]`` stays as it is.
    """
    known = _series(store, run)
    wanted = {one: name for name in names for one, _ in known.get(name, ())}
    found: dict[str, list[tuple[int, float]]] = {}
    if not wanted:
        return found
    # The plus keeps SQLite off the index by step: the new rows are few, and they lie together at the end.
    query = (
        f"select series, step, value from readings where rowid > ? and +series in ({_marks(wanted)}) "
        "order by rowid"
    )
    for series, step, value in store.db.execute(query, (row, *wanted)):
        finite = value is not None and math.isfinite(value)
        found.setdefault(wanted[series], []).append((step, value if finite else math.nan))
    return found


def layers_at(store: RunStore, run: int, name: str, steps: Sequence[int]) -> dict[str, list[float]]:
    """By layer, the values of one name at some steps, NaN where there is none; layers as they were stored.

    Args:
        steps: such as those of :meth:`RunStore.overview`, in order.
    """
    place = {step: number for number, step in enumerate(steps)}
    found: dict[str, list[float]] = {}
    for series, layers in _series(store, run).get(name, ()):
        for layer in layers:
            found.setdefault(layer, [math.nan] * len(steps))
        for start in range(0, len(steps), AT_ONCE) if layers else ():
            part = steps[start : start + AT_ONCE]
            query = f"select step, layers from readings where series = ? and step in ({_marks(part)})"
            for step, packed in store.db.execute(query, (series, *part)):
                for layer, value in zip(layers, array.array("f", packed or b""), strict=False):
                    found[layer][place[step]] = value if math.isfinite(value) else math.nan
    return found


def _series(store: RunStore, run: int) -> dict[str, list[tuple[int, list[str]]]]:
    found: dict[str, list[tuple[int, list[str]]]] = {}
    for one, name, layers in store.db.execute("select id, name, layers from series where run = ?", (run,)):
        found.setdefault(name, []).append((one, json.loads(layers)))
    return found


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)
