"""Plain sequences of numbers, read as float64 arrays or refused by name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def as_floats(
    name: str, values: Any, *, low: float = -math.inf, open_low: bool = False, shape: str = "a sequence"
) -> Floats:
    """A finite 1-D array with every entry at least ``low``, or above it where ``open_low``."""
    try:
        array = np.asarray(_numbers(values), dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {shape} of numbers, got {type(values).__name__}") from None
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be {shape} of numbers, got shape {array.shape}")
    bad = ~np.isfinite(array) | ((array <= low) if open_low else (array < low))
    if bad.any():
        where = int(bad.argmax())
        bound = "" if low == -math.inf else f" and {'above' if open_low else 'at least'} {low:g}"
        raise ValueError(f"{name} must be finite{bound}, got {array[where]:g} at index {where}")
    return array


def _numbers(values: Any) -> Any:
    """Tensors, also of those types and places that NumPy does not read, as numbers."""
    if hasattr(values, "detach"):
        return values.detach().cpu().double().numpy()
    if isinstance(values, list | tuple) and any(hasattr(one, "detach") for one in values):
        return [_numbers(one) if hasattr(one, "detach") else one for one in values]
    return values


def as_steps(name: str, values: Any, last: int) -> NDArray[np.int64]:
    """Increasing step counts from 1 to ``last``; all of them for None."""
    if values is None:
        return np.arange(1, last + 1)
    array = as_floats(name, values)
    steps = array.astype(np.int64)
    if (steps != array).any() or steps[0] < 1 or steps[-1] > last or (np.diff(steps) <= 0).any():
        raise ValueError(
            f"{name} must be increasing whole numbers from 1 to {last}, got {steps[0]} to {steps[-1]}"
            f"{' with a fraction or out of order' if steps[0] >= 1 and steps[-1] <= last else ''}"
        )
    return steps
