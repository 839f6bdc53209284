"""A reading as a row of the run store, and back: its layers as one packed array, its extras as JSON."""

from __future__ import annotations

import array
import json
from typing import Any

from thalweg.watch._store_schema import LATEST
from thalweg.watch.readings import Reading, plain

Row = tuple[int, int, float, float, bytes | None, str | None]


def as_row(series: int, when: float, reading: Reading) -> Row:
    """Of the table of readings.

    Raises:
        ValueError: the step is below 0 or from 2**53 on.
    """
    if not 0 <= reading.step < LATEST:
        raise ValueError(f"step of {reading.name!r} must be at least 0 and below 2**53, got {reading.step}")
    layers = array.array("f", reading.layers.values()).tobytes() if reading.layers else None
    extra = json.dumps(plain(reading.extra)) if reading.extra else None
    return series, reading.step, when, reading.value, layers, extra


def as_reading(name: str, step: int, value: float | None, layers: str, packed: Any, extra: Any) -> Reading:
    """What a row and its series' ``layers`` say; SQLite keeps no NaN, but a null in its place."""
    names = json.loads(layers)
    parts = dict(zip(names, array.array("f", packed) if names else [], strict=True))
    number = float("nan") if value is None else value
    numbers = {key: float(one) for key, one in json.loads(extra or "{}").items()}
    return Reading(step, name, number, parts, numbers)
