"""From results to rates: what is kept of a measurement, and what it says of each finding."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import beta

from benchmarks.findings.measure import Result
from benchmarks.findings.scenario import Healthy, all_healthy, all_planted

# What the page says of a scenario.
WORDS = ("task", "model", "optimizer")
HITS = 0.90
ALARMS = 1 / 20


def interval(count: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact binomial interval of Clopper and Pearson for a rate seen as ``count`` of ``total``."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return low, high


def record(results: Sequence[Result], seeds: tuple[int, int]) -> dict[str, Any]:
    """Plain data for JSON, from which the page is written."""
    return {
        "seeds": list(seeds),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "planted": [_planted(key, rows) for key, rows in _grouped(results, "planted")],
        "healthy": [_healthy(key, rows) for key, rows in _grouped(results, "healthy")],
    }


def as_text(data: dict[str, Any]) -> str:
    """The same as JSON, a line a scenario."""
    parts = []
    for key, value in data.items():
        text = json.dumps(value, ensure_ascii=False)
        if value and isinstance(value, list) and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in value)
            text = f"[\n  {rows}\n ]"
        parts.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _grouped(results: Iterable[Result], kind: str) -> list[tuple[str, list[Result]]]:
    groups: dict[str, list[Result]] = {}
    for one in results:
        if one["kind"] == kind:
            groups.setdefault(one["scenario"], []).append(one)
    return sorted(groups.items())


def _planted(key: str, rows: list[Result]) -> dict[str, Any]:
    scenario = all_planted()[key]
    also = Counter(name for row in rows for name in row["also"])
    return {
        "scenario": key,
        **{
            name: getattr(scenario, name)
            for name in ("finding", "fault", "task", "model", "optimizer", "onset")
        },
        "found": [row["found"] for row in rows],
        "shown": [row["shown"] for row in rows],
        "early": sum(row["early"] for row in rows),
        "twins": sum(row["twin"] for row in rows),
        "also": dict(sorted(also.items())),
    }


def _healthy(key: str, rows: list[Result]) -> dict[str, Any]:
    scenario = all_healthy()[key]
    learnt = [row for row in rows if row["learnt"]]
    return {
        "scenario": key,
        **{name: getattr(scenario, name) for name in WORDS},
        "steps": rows[0]["steps"],
        "bar": bar(scenario),
        "runs": len(learnt),
        "untrained": [row["seed"] for row in rows if not row["learnt"]],
        "alarmed": sum(bool(row["alarms"]) for row in learnt),
        "alarms": dict(sorted(Counter(name for row in learnt for name in row["alarms"]).items())),
        "infos": dict(sorted(Counter(name for row in learnt for name in row["infos"]).items())),
    }


def bar(scenario: Healthy) -> str:
    """In words, what a run must reach to count as healthy."""
    said = []
    if scenario.loss < math.inf:
        said.append(f"loss at most {scenario.loss:g}")
    if scenario.accuracy > -math.inf:
        said.append(f"test accuracy at least {scenario.accuracy:g}")
    return ", ".join(said)


@dataclass(frozen=True)
class Rates:
    """What the measurement says of one finding.

    Attributes:
        runs, hits: runs with the fault, and those in which the finding came.
        twins: runs without the fault in which it came.
        healthy, alarms, infos: healthy runs, those with an alarm of that name, those with a description.
        leads: where it came and the loss shows the fault: steps from the one to the other.
        hidden: where it came and the loss never shows the fault.
    """

    finding: str
    runs: int
    hits: int
    twins: int
    healthy: int
    alarms: int
    infos: int
    leads: tuple[int, ...]
    hidden: int

    @property
    def misses_target(self) -> list[str]:
        """In words, what of the target it does not meet."""
        said = []
        if self.runs and self.hits < HITS * self.runs:
            said.append(f"named in {self.hits} of {self.runs} runs with the fault")
        if self.alarms > ALARMS * self.healthy:
            said.append(f"false alarms in {self.alarms} of {self.healthy} healthy runs")
        return said


def rates(data: dict[str, Any]) -> list[Rates]:
    """The rates of every finding that has scenarios or was named in a healthy run, by name."""
    healthy = data["healthy"]
    named = {row["finding"] for row in data["planted"]}
    named |= {name for row in healthy for name in (*row["alarms"], *row["infos"])}
    return [_rates(name, data["planted"], healthy) for name in sorted(named)]


def _rates(name: str, planted: list[dict[str, Any]], healthy: list[dict[str, Any]]) -> Rates:
    mine = [row for row in planted if row["finding"] == name]
    pairs = [pair for row in mine for pair in zip(row["found"], row["shown"], strict=True)]
    hits = [(found, shown) for found, shown in pairs if found is not None]
    return Rates(
        finding=name,
        runs=len(pairs),
        hits=len(hits),
        twins=sum(row["twins"] for row in mine),
        healthy=sum(row["runs"] for row in healthy),
        alarms=sum(row["alarms"].get(name, 0) for row in healthy),
        infos=sum(row["infos"].get(name, 0) for row in healthy),
        leads=tuple(shown - found for found, shown in hits if shown is not None),
        hidden=sum(shown is None for _, shown in hits),
    )


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return float(low), float(middle), float(high)
