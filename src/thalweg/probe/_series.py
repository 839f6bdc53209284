"""The readings of runs as arrays: aligned in time, checked, and standardised."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from thalweg._core.checks import nearest

Array = np.ndarray
# Readings by name, each by position or by step; or an array (time, readings).
Run = Any
FLAT = 1e-9  # spread over size under which a reading counts as constant


def named_runs(runs: Mapping[str, Run] | Sequence[Run]) -> dict[str, Run]:
    if isinstance(runs, Mapping):
        return {str(name): run for name, run in runs.items()}
    return {str(number): run for number, run in enumerate(runs)}


def aligned(name: str, run: Run, wanted: Sequence[str] | None = None) -> tuple[list[str], Array, Array]:
    """Names of the readings, steps [t] and values [t, readings], float64.

    Raises:
        ValueError: readings are missing, of different lengths, too few or not finite.
    """
    if not isinstance(run, Mapping):
        values = np.asarray(run, dtype=np.float64)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2:
            raise ValueError(f"run {name!r} must be an array (time, readings), got shape {values.shape}")
        names = [str(number) for number in range(values.shape[1])]
        if wanted is not None and len(wanted) == len(names):
            names = list(wanted)  # columns have no names to compare
        steps = np.arange(len(values))
    else:
        names = [str(reading) for reading in run]
        steps, values = _table(name, run)
    if wanted is not None:
        missing = [reading for reading in wanted if reading not in names]
        if missing:
            hint = nearest(missing[0], names)
            raise ValueError(f"run {name!r} must have the reading {missing[0]!r} like the others{hint}")
        values = values[:, [names.index(reading) for reading in wanted]]
        names = list(wanted)
    if not names or len(values) < 3:
        raise ValueError(f"run {name!r} must have at least 3 readings in time, got shape {values.shape}")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"run {name!r} must have finite readings, got {values[row, column]} for {names[column]!r} at "
            f"step {steps[row]:g}; leave the run or the reading out"
        )
    return names, steps, values


def _table(name: str, run: Mapping[str, Any]) -> tuple[Array, Array]:
    series = list(run.values())
    if not series:
        return np.arange(0), np.empty((0, 0))
    single = [reading for reading, one in run.items() if not np.iterable(one)]
    if single:
        raise ValueError(
            f"run {name!r} must map each reading's name to its values, got {run[single[0]]!r} for "
            f"{single[0]!r}; of one run give {{'run': readings}}"
        )
    if all(isinstance(one, Mapping) for one in series):
        empty = [reading for reading, one in run.items() if not one]
        if empty:
            raise ValueError(f"run {name!r} must have values of each reading, got none of {empty[0]!r}")
        # The rarest reading sets the times; of each other one its last value until then.
        begin = max(min(one) for one in series)
        rarest = min(series, key=len)
        steps = [step for step in sorted(rarest) if step >= begin]
        columns = []
        for one in series:
            known = sorted(one)
            columns.append([one[known[bisect_right(known, step) - 1]] for step in steps])
        return np.asarray(steps, dtype=np.float64), np.asarray(columns, dtype=np.float64).T
    if any(isinstance(one, Mapping) for one in series):
        raise ValueError(f"run {name!r} must have all its readings by step or none, got both kinds")
    lengths = {str(reading): len(one) for reading, one in run.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            f"run {name!r} must have equally many readings of each kind, or give them by step; got {lengths}"
        )
    values = np.stack([np.asarray(one, dtype=np.float64) for one in series], axis=1)
    return np.arange(len(values)), values


def spread(values: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each reading; a constant one has deviation zero."""
    center, scale = values.mean(axis=0), values.std(axis=0)
    return center, np.where(scale <= FLAT * np.maximum(np.abs(values).max(axis=0), 1e-300), 0.0, scale)


def standardised(values: Array, center: Array, scale: Array) -> Array:
    """Readings in standard deviations; those that are constant become zero."""
    return np.where(scale > 0, (values - center) / np.where(scale > 0, scale, 1.0), 0.0)
