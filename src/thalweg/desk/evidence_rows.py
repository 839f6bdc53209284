"""What was measured of a paper's claim, as a page shows it: verdict, effect, seeds, minutes, machine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from thalweg.papers.entry import Entry
from thalweg.papers.status import evidence_folder, read_evidence

__all__ = ["Measured", "Row", "damage", "evidence_stamp", "measured"]

DAMAGED = (KeyError, TypeError, ValueError, AttributeError)


@dataclass(frozen=True)
class Row:
    """One setting of a study: what was compared, how it came out, and by which rule.

    ``formula`` says how the effect is computed from the arms: a ratio, of which 1 is no difference, or a
    difference. ``low`` and ``high`` are its least and greatest value over the seeds.
    """

    setting: str
    metric: str
    verdict: str
    effect_size: float
    low: float
    high: float
    formula: str

    @property
    def is_ratio(self) -> bool:
        return "/" in self.formula

    @property
    def size(self) -> str:
        """The effect as people say it: ``5.85×`` or ``+0.294``."""
        if self.is_ratio:
            return f"{_short(self.effect_size)}×"
        return f"{'+' if self.effect_size > 0 else ''}{_short(self.effect_size)}"

    @property
    def spread(self) -> str:
        return f"{_short(self.low)} to {_short(self.high)}"

    @property
    def effect(self) -> str:
        return f"{self.effect_size:.3g} ({self.low:.3g} to {self.high:.3g}), {self.formula}"

    @property
    def subject(self) -> str:
        """What was measured, without the small print that the metric carries in brackets or after a colon."""
        return self.metric.split(" (")[0].split(": ")[0]

    @cached_property
    def interval(self) -> tuple[float, float, float]:
        """Least, median and greatest effect on a line from 0 to 100 whose middle, 50, is no difference.

        Ratios are placed by their logarithm, so that half and double are equally far from the middle.
        """
        values = [self.low, self.effect_size, self.high]
        if self.is_ratio:
            values = [math.log(max(value, 1e-9)) for value in values]
        reach = max(*map(abs, values), 1e-9)
        low, middle, high = (50 + 46 * value / reach for value in values)
        return low, middle, high


@dataclass(frozen=True)
class Measured:
    """The evidence of one paper; ``verdict`` and ``headline`` are of the setting that a study puts first."""

    verdict: str
    headline: Row | None
    seeds: int
    minutes: float
    machine: str
    date: str
    notes: str
    rows: tuple[Row, ...]
    raw: dict[str, Any]

    @property
    def effect(self) -> str:
        return self.headline.effect if self.headline else ""


def measured(entry: Entry) -> Measured | None:
    """What was measured, or None where nothing was yet or the file is damaged (:func:`damage` says how)."""
    try:
        return _measured(entry.key)
    except DAMAGED:
        return None


def evidence_stamp() -> int:
    """Differs once a study has written what it measured: it puts a whole file into the folder."""
    try:
        return evidence_folder().stat().st_mtime_ns
    except OSError:
        return 0


def damage(entry: Entry) -> str:
    """What is wrong with a paper's evidence; empty where it can be read or there is none yet."""
    path = evidence_folder() / f"{entry.key}.json"
    if not path.exists():
        return ""
    try:
        return "" if _measured(entry.key) else f"{path.name} is no JSON with a verdict"
    except DAMAGED as error:
        return f"{path.name} is damaged: {type(error).__name__} {error}"


def _measured(key: str) -> Measured | None:
    raw = read_evidence(key)
    if raw is None:
        return None
    machine = raw.get("machine", {})
    return Measured(
        verdict=raw["verdict"],
        headline=_row(raw.get("headline", ""), raw) if "spread" in raw else None,
        seeds=len(raw.get("seeds", ())),
        minutes=float(raw.get("minutes", 0)),
        machine=f"{machine.get('cores', '?')} cores, {machine.get('cpu', 'unknown')}",
        date=raw.get("date", ""),
        notes=raw.get("notes", ""),
        rows=tuple(_row(name, one) for name, one in raw.get("settings", {}).items()),
        raw=raw,
    )


def _row(setting: str, one: dict[str, Any]) -> Row:
    low, high = map(float, one["spread"])
    return Row(setting, one["metric"], one["verdict"], float(one["effect"]), low, high, one["formula"])


def _short(value: float) -> str:
    """Three digits without an exponent that nobody reads: 42,441 rather than 4.24e+04."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
