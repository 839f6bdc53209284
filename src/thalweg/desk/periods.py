"""Days, ISO weeks and months, as addresses name them."""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass

__all__ = ["Period", "name_in", "period_of", "start_of"]

WEEK = re.compile(r"(\d{4})-W(\d{2})")
SHAPES = {
    "date": "a day such as 2024-05-17",
    "week": "a week such as 2024-W20",
    "month": "a month such as 2024-05",
}


@dataclass(frozen=True)
class Period:
    """``kind`` is date, week or month; ``first`` and ``last`` are the dates that belong to it, as texts.

    A month begins with its own name, for papers of which only the month is known.
    """

    kind: str
    name: str
    first: str
    last: str

    @property
    def months(self) -> tuple[str, ...]:
        """The months that it touches."""
        return tuple(dict.fromkeys((self.first[:7], self.last[:7])))

    @property
    def spans(self) -> tuple[tuple[str, str], ...]:
        """Stretches of dates, the latest first: in a week of two months, the later one's name is between."""
        if self.kind == "month" or self.first[:7] == self.last[:7]:
            return ((self.first, self.last),)
        return (f"{self.last[:7]}-01", self.last), (self.first, f"{self.first[:7]}-31")


def period_of(*, date: str = "", week: str = "", month: str = "") -> Period:
    """The one period that is given.

    Raises:
        ValueError: none or several are, or the text is no such date.
    """
    given = [(kind, value) for kind, value in (("date", date), ("week", week), ("month", month)) if value]
    if len(given) != 1:
        raise ValueError(f"one of date, week and month must be given, got {len(given)}")
    kind, value = given[0]
    try:
        if kind == "month":
            first = datetime.date.fromisoformat(f"{value}-01")
            name = first.isoformat()[:7]
            return Period(kind, name, name, f"{name}-31")
        if kind == "date":
            day = datetime.date.fromisoformat(value).isoformat()
            return Period(kind, day, day, day)
        match = WEEK.fullmatch(value)
        if match is None:
            raise ValueError
        first, last = (datetime.date.fromisocalendar(int(match[1]), int(match[2]), day) for day in (1, 7))
        return Period(kind, value, first.isoformat(), last.isoformat())
    except ValueError:
        raise ValueError(f"{kind} must be {SHAPES[kind]}, got {value!r}") from None


def name_in(kind: str, day: str) -> str:
    """The period of a kind that a day is in."""
    if kind == "week":
        year, week, _ = datetime.date.fromisoformat(day).isocalendar()
        return f"{year}-W{week:02}"
    return day if kind == "date" else day[:7]


def start_of(date: str) -> float:
    """The first moment (UTC, seconds of 1970) of a day or a month; 0 where there is no such date."""
    try:
        day = datetime.date.fromisoformat(date if len(date) > 7 else f"{date}-01")
    except ValueError:
        return 0.0
    return datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC).timestamp()
