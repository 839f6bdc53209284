"""Argument checks whose errors name the argument, its value and what is allowed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def check_number(name: str, value: Any, low: float, high: float, bounds: str = "[]") -> float:
    """Refuse ``value`` outside the interval; ``bounds`` such as ``"[)"`` says which ends belong to it."""
    allowed = f"{bounds[0]}{low:g}, {high:g}{bounds[1]}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number in {allowed}, got {value!r}") from None
    above = number >= low if bounds[0] == "[" else number > low
    below = number <= high if bounds[1] == "]" else number < high
    if math.isnan(number) or not (above and below):
        raise ValueError(f"{name} must be in {allowed}, got {value!r}")
    return number


def check_unit_interval(name: str, value: Any) -> float:
    """Refuse ``value`` outside [0, 1)."""
    return check_number(name, value, 0, 1, "[)")


def check_positive(name: str, value: Any) -> float:
    """Refuse ``value`` outside (0, inf)."""
    return check_number(name, value, 0, math.inf, "()")


def check_not_negative(name: str, value: Any) -> float:
    """Refuse ``value`` outside [0, inf)."""
    return check_number(name, value, 0, math.inf, "[)")


def check_count(name: str, value: Any, low: int = 1) -> int:
    """Refuse anything but an integer of at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}")
    return value


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Refuse ``value`` that is not among ``allowed``, and suggest the nearest."""
    options = sorted(allowed)
    if value not in options:
        raise ValueError(
            f"{name} must be one of {', '.join(map(str, options))}; got {value!r}"
            f"{nearest(str(value), map(str, options))}"
        )
    return value


def check_names(name: str, value: Any) -> list[str]:
    """A list of what ``value`` holds; a lone string is refused, whose letters would be taken for names."""
    if isinstance(value, str):
        raise ValueError(f"{name} must be several names, such as [{value!r}], got the string {value!r}")
    try:
        return list(value)
    except TypeError:
        raise ValueError(f"{name} must be several names, got {value!r}") from None


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], said: str) -> None:
    """Refuse ``value`` that is no ``kind``, which the error calls ``said``."""
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be {said}, got {type(value).__name__}")


def nearest(word: str, options: Iterable[str]) -> str:
    """`` (did you mean a, b?)`` or nothing, for the end of an error message."""
    near = difflib.get_close_matches(word, list(options), n=3, cutoff=0.5)
    return f" (did you mean {', '.join(near)}?)" if near else ""
