"""Which papers a question may find: by room, topic and day, as one true or false for each paper."""

from __future__ import annotations

import datetime
import json
import re
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["Filters", "LabelWriter", "Labels", "check_range", "within"]

_NO_DAY = (99_999_999, 0)  # outside of every range


@dataclass(frozen=True)
class Filters:
    """Empty lets everything through; ``since`` and ``until`` are days, months or years, both included.

    ``rows``: numbers of the only papers that pass, for what an index does not hold; None for any.
    """

    topic: str = ""
    room: str = ""
    since: str = ""
    until: str = ""
    rows: frozenset[int] | None = field(default=None, repr=False)

    def __bool__(self) -> bool:
        return bool(self.topic or self.room or self.since or self.until) or self.rows is not None

    def holds(self, row: int) -> bool:
        """Whether a paper is among those that may pass, whatever else it has."""
        return self.rows is None or row in self.rows


def within(date: str, since: str, until: str) -> bool:
    """Whether a day, a month or a year meets a range; one that is not known meets no range."""
    if not (since or until):
        return True
    first, last = _span(date)
    return last >= (_span(since)[0] if since else 1) and first <= (
        _span(until)[1] if until else _NO_DAY[0] - 1
    )


def check_range(since: str, until: str) -> None:
    """Refuse ends of a range that are neither a day nor a month nor a year, or in the wrong order."""
    for name, date in (("since", since), ("until", until)):
        try:
            if date and not re.fullmatch(r"\d{4}(-\d\d){0,2}", date):
                raise ValueError
            datetime.date.fromisoformat(f"{date}{'0001-01-01'[len(date) :]}")
        except ValueError:
            allowed = "a day such as 2024-05-17, a month such as 2024-05 or a year such as 2024"
            raise ValueError(f"{name} must be {allowed}, got {date!r}") from None
    if reversed_range(since, until):
        raise ValueError(f"since must not be after until, got {since!r} and {until!r}")


def reversed_range(since: str, until: str) -> bool:
    """Whether a range ends before it begins."""
    return bool(since and until) and _span(since)[0] > _span(until)[1]


class LabelWriter:
    """Takes the papers in order; twenty bytes a paper are kept until :meth:`write`."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._days = array("i")
        self._rooms = array("B")
        self._room_names: dict[str, int] = {"": 0}
        self._topics: dict[str, array[int]] = defaultdict(lambda: array("I"))

    def add(self, row: int, day: str, room: str, topics: tuple[str, ...]) -> None:
        for topic in topics:
            self._topics[topic].append(len(self._rows))
        self._rows.append(row)
        self._days.extend(_span(day))
        self._rooms.append(self._room_names.setdefault(room, len(self._room_names)))

    def write(self, folder: Path) -> None:
        np.save(folder / "rows.npy", np.array(self._rows, np.int64))
        np.save(folder / "days.npy", np.array(self._days, np.int32).reshape(-1, 2).T.copy())
        np.save(folder / "rooms.npy", np.array(self._rooms, np.uint8))
        names = sorted(self._topics)
        np.save(
            folder / "topics.npy", np.concatenate([np.empty(0, np.uint32), *(self._topics[n] for n in names)])
        )
        ends = np.cumsum([len(self._topics[name]) for name in names]).tolist()
        labels = {"rooms": self._room_names, "topics": dict(zip(names, ends, strict=True))}
        (folder / "labels.json").write_text(json.dumps(labels), encoding="utf8")


class Labels:
    """What :class:`LabelWriter` wrote; ``rows`` are the papers' numbers, rising."""

    def __init__(self, folder: Path) -> None:
        self.rows: np.ndarray = np.load(folder / "rows.npy")
        self._first, self._last = np.load(folder / "days.npy")
        self._rooms = np.load(folder / "rooms.npy")
        self._topics = np.load(folder / "topics.npy", mmap_mode="r")
        labels = json.loads((folder / "labels.json").read_text(encoding="utf8"))
        self._room_names = labels["rooms"]
        ends = labels["topics"]
        self._places = dict(zip(ends, zip([0, *ends.values()], ends.values(), strict=False), strict=True))

    def allowed(self, filters: Filters) -> np.ndarray | None:
        """True for each paper that passes, bool [papers]; None when all do."""
        if not filters:
            return None
        found = np.ones(len(self.rows), bool)
        if filters.room:
            found &= self._rooms == self._room_names.get(filters.room, 255)
        if filters.since:
            found &= self._last >= _span(filters.since)[0]
        if filters.until:
            found &= self._first <= _span(filters.until)[1]
        if filters.topic:
            having = np.zeros(len(self.rows), bool)
            having[self._topics[slice(*self._places.get(filters.topic, (0, 0)))]] = True
            found &= having
        if filters.rows is not None:
            found &= self._among(np.fromiter(filters.rows, np.int64, len(filters.rows)))
        return found

    def _among(self, rows: np.ndarray) -> np.ndarray:
        """True for each paper whose number is one of these, bool [papers]."""
        found = np.zeros(len(self.rows), bool)
        places = np.searchsorted(self.rows, rows)
        here = places < len(self.rows)
        places, rows = places[here], rows[here]
        found[places[self.rows[places] == rows]] = True
        return found


def _span(date: str) -> tuple[int, int]:
    """The first and the last day of a day, a month or a year, as numbers such as 20240517."""
    digits = date.replace("-", "")
    if not digits.isdigit() or len(digits) not in (4, 6, 8):
        return _NO_DAY
    return int(digits.ljust(8, "0")), int(digits.ljust(8, "9"))
