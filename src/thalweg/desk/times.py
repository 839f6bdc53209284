"""Moments and days in words, for templates: ``{{ at|ago }}``, ``{{ at|iso }}``, ``{{ day|spoken }}``."""

from __future__ import annotations

import calendar
import datetime
import time

from thalweg.desk.periods import WEEK

LAST = 253402300799.0  # the last second of the year 9999
UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


def is_moment(at: object) -> bool:
    """Whether it is what a calendar has: seconds of 1970, none before."""
    return isinstance(at, (int, float)) and 0 <= at <= LAST


def iso(at: float) -> str:
    """Seconds of 1970 as ``2026-11-30T01:52:00Z``."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ago(at: float, now: float | None = None) -> str:
    """How long ago that was: ``just now``, ``5 minutes ago``, ``1 day ago``."""
    past = (time.time() if now is None else now) - at
    for seconds, name in UNITS:
        if past >= seconds:
            count = int(past // seconds)
            return f"{count} {name}{'s' if count > 1 else ''} ago"
    return "just now"


def spoken(name: str) -> str:
    """A day, ISO week or month as people say it (``Friday, 17 May 2024``); any other text as it is."""
    try:
        if match := WEEK.fullmatch(name):
            return f"Week {int(match[2])} of {match[1]}"
        day = datetime.date.fromisoformat(name if len(name) > 7 else f"{name}-01")
    except ValueError:
        return name
    month = f"{calendar.month_name[day.month]} {day.year}"
    return month if len(name) == 7 else f"{calendar.day_name[day.weekday()]}, {day.day} {month}"
