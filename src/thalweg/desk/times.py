"""Moments in words and in ISO 8601, for templates: ``{{ at|ago }}``, ``{{ at|iso }}``."""

from __future__ import annotations

import datetime
import time

UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


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
