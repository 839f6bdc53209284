"""A paper in the catalog: the record, and the reader that refuses a malformed file by name.

Each ``entries/<key>.toml`` is one paper; the folder is the registry.
"""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from thalweg._core.checks import nearest

ENTRIES = Path(__file__).parent / "entries"
ROOMS = (
    "optim",
    "probe",
    "watch",
    "nn",
    "surgery",
    "credit",
    "continual",
    "distributed",
    "theory",
    "tasks",
    "papers",
    "studies",
    "desk",
)
FORMS = ("part", "probe", "study")
TIERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Entry:
    """One paper: what it is, what it claims, and where its code will be found.

    ``form`` says what it becomes here: a ``part`` to train with, a ``probe`` that measures, or a ``study``
    only. ``tier`` is the order of work, 1 first. ``authors`` stand in the paper's order and ``organisation``
    is the first one's; both are empty unless a source states them. ``addresses`` names the findings it
    diagnoses or remedies.
    ``usage`` is Python that runs as pasted beside README's loop: it may use the loop's ``model``, ``opt``,
    ``loss_fn``, ``loader`` and ``batch``.
    """

    key: str
    title: str
    room: str
    form: str
    tier: int
    topics: tuple[str, ...]
    arxiv: str = ""
    date: str = ""
    authors: tuple[str, ...] = ()
    organisation: str = ""
    repository: str = ""
    summary: str = ""
    claim: str = ""
    parts: tuple[str, ...] = ()
    usage: str = ""
    addresses: tuple[str, ...] = ()

    @property
    def link(self) -> str:
        """The paper's page on arXiv, or an empty string."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


class UnknownPaper(KeyError, ValueError):
    """No paper has this key; the message suggests the nearest ones."""

    def __str__(self) -> str:
        return str(self.args[0])


def load(folder: Path | None = None) -> tuple[Entry, ...]:
    """Every entry, sorted by key; read once.

    Of the built-in catalog a malformed file is left out with a warning, so that one damaged paper does not
    take all others away; :func:`faults` names it.

    Raises:
        ValueError: a file of ``folder`` is malformed; the message names the file, the field, the value and
            what is allowed.
    """
    entries, wrong = _read_folder(ENTRIES if folder is None else Path(folder))
    if wrong and folder is not None:
        raise ValueError(wrong[0])
    for one in wrong:
        warnings.warn(f"left out of the catalog: {one}", stacklevel=2)
    return entries


def faults() -> tuple[str, ...]:
    """What is wrong with files of the built-in catalog that were left out of it."""
    return _read_folder(ENTRIES)[1]


def find(key: str, folder: Path | None = None) -> Entry:
    """The entry with this key.

    Raises:
        UnknownPaper: no such key (a ``KeyError`` and a ``ValueError``), with the nearest keys.
    """
    entries = {entry.key: entry for entry in load(folder)}
    if key not in entries:
        raise UnknownPaper(f"no paper has the key {key!r}{nearest(str(key), entries)}")
    return entries[key]


@lru_cache(maxsize=8)
def _read_folder(folder: Path) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """The entries, and what is wrong with each file that is none."""
    entries, wrong = [], []
    for path in sorted(folder.glob("*.toml")):
        try:
            entries.append(_read(path))
        except (ValueError, OSError) as error:
            wrong.append(str(error))
    return tuple(sorted(entries, key=lambda entry: entry.key)), tuple(wrong)


def _read(path: Path) -> Entry:
    try:
        content = tomllib.loads(path.read_text(encoding="utf8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name}: not a TOML file in UTF-8: {error}") from None
    for name in content:
        if name not in _ALLOWED:
            raise ValueError(f"{path.name}: unknown field {name!r}{nearest(name, _ALLOWED)}")
    for name in _REQUIRED:
        if name not in content:
            raise ValueError(f"{path.name}: field {name!r} is missing; required are {', '.join(_REQUIRED)}")
    for name, value in content.items():
        allowed, accepts = _ALLOWED[name]
        if not accepts(value):
            raise ValueError(f"{path.name}: {name} must be {allowed}, got {value!r}")
    if content["key"] != path.stem:
        # The key is the file's name, so two files can never share one.
        raise ValueError(f"{path.name}: key must equal the file's name {path.stem!r}, got {content['key']!r}")
    implied = _date_of(content.get("arxiv", ""))
    if content.get("date", implied) != implied:
        raise ValueError(
            f"{path.name}: date must be {implied!r} as the arxiv id says, got {content['date']!r}"
        )
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
    return Entry(**values)


def _date_of(arxiv: str) -> str:
    return f"20{arxiv[:2]}-{arxiv[2:4]}" if arxiv else ""


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value == value.strip()


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _one_of(options: tuple) -> Callable[[Any], bool]:
    return lambda value: type(value) is type(options[0]) and value in options


def _list_of(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, list) and all(map(accepts, value)) and len(set(value)) == len(value)
    )


_ALLOWED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "key": ("lower-case words joined by -", _matches(r"[a-z0-9]+(-[a-z0-9]+)*")),
    "title": ("a line of text", _text),
    "room": (f"one of {', '.join(ROOMS)}", _one_of(ROOMS)),
    "form": (f"one of {', '.join(FORMS)}", _one_of(FORMS)),
    "tier": ("1, 2, 3 or 4", _one_of(TIERS)),
    "topics": (
        "a list of different short lower-case terms",
        _list_of(_matches(r"[a-z0-9][a-z0-9 /-]{0,39}")),
    ),
    "arxiv": ("an arXiv id such as 2405.20233", _matches(r"\d{2}(0[1-9]|1[0-2])\.\d{4,5}")),
    "date": ("a month such as 2024-05", _matches(r"\d{4}-(0[1-9]|1[0-2])")),
    "authors": ("a list of different names such as Ada Lovelace", _list_of(_text)),
    "organisation": ("a name without leading or trailing space", _text),
    "repository": (
        "an address such as https://github.com/owner/name",
        _matches(r"https://github\.com/[\w.-]+/[\w.-]+"),
    ),
    "summary": ("text without leading or trailing space", _text),
    "claim": ("text without leading or trailing space", _text),
    "parts": (
        "a list of different import paths such as thalweg.optim.Lion",
        _list_of(_matches(r"thalweg(\.[A-Za-z]\w*){2,}")),
    ),
    "usage": ("Python code without leading or trailing space", lambda value: _text(value) and _parses(value)),
    "addresses": (
        "a list of different names of findings such as gradient spike",
        _list_of(_matches(r"[a-z][a-z ,-]{2,59}")),
    ),
}
_REQUIRED = ("key", "title", "room", "form", "tier", "topics")
assert set(_ALLOWED) == {field.name for field in fields(Entry)}
