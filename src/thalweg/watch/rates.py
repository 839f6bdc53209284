"""How often a finding is right: hits on planted faults, false alarms on healthy runs, as measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

__all__ = ["ErrorRates", "error_rates"]


@dataclass(frozen=True)
class ErrorRates:
    """What was counted for one finding; ``docs/finding-rates.md`` says in which runs.

    Attributes:
        runs: with the fault planted.
        hits: of those, the ones in which the finding came, at the fault or behind it.
        healthy: runs in which nothing was wrong.
        alarms: of those, the ones in which it came as a ``warning`` or ``critical``.
    """

    runs: int
    hits: int
    healthy: int
    alarms: int

    def __str__(self) -> str:
        return (
            f"named in {self.hits} of {self.runs} runs with the fault, "
            f"false alarms in {self.alarms} of {self.healthy} healthy runs"
        )


def error_rates(finding: str) -> ErrorRates | None:
    """The rates of the finding of that name; None if they have not been measured."""
    data = _measured()
    mine = [row for row in data.get("planted", ()) if row["finding"] == finding]
    if not mine:
        return None
    steps = [step for row in mine for step in row["found"]]
    healthy = data["healthy"]
    return ErrorRates(
        runs=len(steps),
        hits=sum(step is not None for step in steps),
        healthy=sum(row["runs"] for row in healthy),
        alarms=sum(row["alarms"].get(finding, 0) for row in healthy),
    )


@cache
def _measured() -> dict[str, Any]:
    """What ``python -m benchmarks.findings --write`` has written."""
    file = files("thalweg.watch") / "error_rates.json"
    return json.loads(file.read_text(encoding="utf8")) if file.is_file() else {}
