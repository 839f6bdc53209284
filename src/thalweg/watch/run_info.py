"""What a run store knows about a run as a whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["RunInfo"]


@dataclass(frozen=True)
class RunInfo:
    """A run in a store; times in epoch seconds.

    Attributes:
        seen: when it last wrote.
        ended: None while it goes on, for ever if it was killed.
        outcome: ``finished`` or the name of an exception, None while it goes on.
        steps: optimizer steps so far.
        about: its settings, and what watching has cost; ``unreadable`` says why, where they cannot be read.
    """

    id: int
    name: str
    started: float
    seen: float
    ended: float | None
    outcome: str | None
    steps: int
    about: dict[str, Any]


FIELDS = tuple(RunInfo.__dataclass_fields__)


def as_run(row: Sequence[Any]) -> RunInfo:
    """A run of the store's table, whose columns are ``FIELDS``."""
    run, name, started, seen, ended, outcome, steps, text = row
    try:
        about = json.loads(text)
        started, seen, steps = float(started), float(seen), int(steps)
        ended = None if ended is None else float(ended)
        if not isinstance(about, dict):
            raise ValueError(f"it is {about!r}")
    except (ValueError, TypeError) as error:
        about = {"unreadable": f"what is stored about run {run} cannot be read: {error}"}
        started, seen, ended, steps = 0.0, 0.0, None, 0
    return RunInfo(run, str(name), started, seen, ended, outcome, steps, about)
