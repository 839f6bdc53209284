"""What was measured of a paper's claim, as a page shows it: verdict, effect, seeds, minutes, machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from thalweg.papers.entry import Entry
from thalweg.papers.status import read_evidence

__all__ = ["Measured", "measured"]


@dataclass(frozen=True)
class Row:
    """One setting of a study: what was compared, how it came out, and by which rule."""

    setting: str
    metric: str
    effect: str
    verdict: str


@dataclass(frozen=True)
class Measured:
    """The evidence of one paper; ``verdict`` and ``effect`` are those of the headline setting."""

    verdict: str
    effect: str
    seeds: int
    minutes: float
    machine: str
    date: str
    notes: str
    rows: tuple[Row, ...]
    raw: dict[str, Any]


def measured(entry: Entry) -> Measured | None:
    """What was measured, or None where nothing was yet."""
    raw = read_evidence(entry.key)
    if raw is None:
        return None
    rows = tuple(
        Row(name, one["metric"], _effect(one), one["verdict"])
        for name, one in raw.get("settings", {}).items()
    )
    machine = raw.get("machine", {})
    return Measured(
        verdict=raw["verdict"],
        effect=_effect(raw) if "spread" in raw else "",
        seeds=len(raw.get("seeds", ())),
        minutes=float(raw.get("minutes", 0)),
        machine=f"{machine.get('cores', '?')} cores, {machine.get('cpu', 'unknown')}",
        date=raw.get("date", ""),
        notes=raw.get("notes", ""),
        rows=rows,
        raw=raw,
    )


def _effect(one: dict[str, Any]) -> str:
    low, high = one["spread"]
    return f"{one['effect']:.3g} ({low:.3g} to {high:.3g}), {one['formula']}"
