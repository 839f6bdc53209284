"""Bars that benchmarks hold to: what was missed is said at the end, and ends ``make bench`` with an error."""

from __future__ import annotations

MISSED: list[str] = []


def judged(what: str, seconds: float, bar: float) -> str:
    """``within`` or ``MISSES`` a bar, in milliseconds."""
    if seconds > bar:
        MISSED.append(f"{what}: {seconds * 1e3:.1f} ms, not {bar * 1e3:.0f} ms")
    return f"{'within' if seconds <= bar else 'MISSES'} {bar * 1e3:.0f} ms"
