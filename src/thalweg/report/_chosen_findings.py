"""Which findings of a run a page shows: all of few; of many the first of each name, and how many more."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from thalweg.watch.readings import Finding
from thalweg.watch.store import RunStore
from thalweg.watch.store_findings import StoredFindings

EACH = 20  # of one name
MOST = 200  # of a run


@dataclass
class More:
    """Findings of one name that are not shown: how many, how many of them critical, and their steps."""

    name: str
    count: int
    critical: int
    first: int
    last: int


@dataclass(frozen=True)
class ChosenFindings:
    """Of ``total`` findings those that are ``shown``, in the order in which they came, and ``more``."""

    total: int
    shown: list[Finding]
    more: list[More]


def chosen_findings(store: RunStore, run: int) -> ChosenFindings:
    """What is shown of a run; a row that cannot be read is a finding that says so."""
    stored = StoredFindings(store, run, lambda why: warnings.warn(f"thalweg: {why}", stacklevel=2))
    with store.moment():
        total = len(stored)
        numbers: list[int] = []
        taken: dict[str, int] = {}
        more: dict[str, More] = {}
        for number, (name, severity, step) in enumerate(stored.marks(0, total)):
            if len(numbers) < MOST and taken.get(name, 0) < EACH:
                numbers.append(number)
                taken[name] = taken.get(name, 0) + 1
                continue
            rest = more.setdefault(name, More(name, 0, 0, step, step))
            rest.count += 1
            rest.critical += severity == "critical"
            rest.first, rest.last = min(rest.first, step), max(rest.last, step)
        shown = [one for number in numbers for one in stored.between(number, number + 1)]
    return ChosenFindings(total, shown, list(more.values()))
