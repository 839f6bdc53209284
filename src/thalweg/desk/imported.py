"""A paper from outside, checked field by field before anything of it is kept."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Imported", "arxiv_id", "checked"]

# A new id such as 2405.20233, an old one such as hep-th/9901001, each perhaps with its version.
ARXIV = re.compile(r"(?:arxiv:)?(\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(v\d+)?", re.IGNORECASE)
# Any other has a prefix, so that no id can ever be a key of the built-in catalog.
OTHER = re.compile(r"[a-z][a-z0-9]{1,19}:[A-Za-z0-9][A-Za-z0-9._()/:-]{0,150}")
CATEGORY = re.compile(r"[A-Za-z-]+(\.[A-Za-z-]+)?")
LONGEST = {"title": 1000, "abstract": 20_000, "organisation": 200, "source": 40, "name": 200}
MOST_AUTHORS, MOST_CATEGORIES = 5000, 50
# What XML, and so no feed, can hold.
UNPRINTABLE = dict.fromkeys([*range(32), *range(127, 160), 0xFFFE, 0xFFFF])


@dataclass(frozen=True)
class Imported:
    """``id`` is the arXiv id without its version, or ``prefix:name``; ``published`` a day, a month or empty.

    ``submitted`` is the time of that day (UTC) such as 17:59:59, where it is known.
    ``updated`` is an ISO day or moment (UTC) and orders versions: a later one replaces an earlier one.
    """

    id: str
    title: str
    abstract: str = ""
    authors: tuple[str, ...] = ()
    published: str = ""
    updated: str = ""
    categories: tuple[str, ...] = ()
    organisation: str = ""
    repository: str = ""
    link: str = ""
    source: str = "file"
    submitted: str = ""


def arxiv_id(text: str) -> str:
    """The arXiv id in ``text`` without its version, or an empty string where it is none."""
    match = ARXIV.fullmatch(text.strip())
    return match[1] if match else ""


def categories_among(terms: Iterable[str]) -> list[str]:
    """Those of arXiv; its entries carry classes of the MSC (``68T07``) and the ACM (``I.2.6; I.2.7``) too."""
    return [one for one in terms if one and CATEGORY.fullmatch(one)][:MOST_CATEGORIES]


def checked(row: Any, source: str = "file") -> Imported:
    """The paper in a row of an import; all of it is right, or nothing is taken.

    Args:
        row: fields as in docs/desk.md; a field that is not known is ignored, one that is missing is empty.
        source: where it came from.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a paper must be an object with fields, got {_short(row)}")
    name = _text(row, "id")
    if found := arxiv_id(name):
        name = found
    elif not OTHER.fullmatch(name):
        raise ValueError(
            "id must be an arXiv id, or prefix:name such as doi:10.1000/1 with a prefix of 2 to 20 small "
            f"letters and digits, got {_short(name)}"
        )
    title = _text(row, "title")
    if not title:
        raise ValueError("title must not be empty")
    published = _day(row, "published")
    if not published and found and found[0].isdigit():
        published = f"20{found[:2]}-{found[2:4]}" if 1 <= int(found[2:4]) <= 12 else ""
    return Imported(
        id=name,
        title=title,
        abstract=_text(row, "abstract"),
        authors=_names(row.get("authors")),
        published=published,
        updated=_moment(row, "updated") or published,
        categories=_categories(row.get("categories")),
        organisation=_text(row, "organisation"),
        repository=_address(row, "repository"),
        link=_address(row, "link") or (f"https://arxiv.org/abs/{found}" if found else ""),
        source=source,
        submitted=_moment(row, "published")[11:19] if len(_text(row, "published")) > 10 else "",
    )


def _text(row: Mapping[str, Any], field: str) -> str:
    return clean(row.get(field), field, LONGEST.get(field, 500))


def clean(value: Any, field: str, longest: int) -> str:
    """Text on one line that every page and feed can hold."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{field} must be text, got {_short(value)}")
    text = " ".join(value.split())
    if not text.isprintable():  # which half a character is not either
        text = text.translate(UNPRINTABLE).strip()
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{field} must be text, got half of a character in {_short(text)}")
    if len(text) > longest:
        raise ValueError(f"{field} must have at most {longest} characters, got {len(text)}")
    return text


def _names(value: Any) -> tuple[str, ...]:
    """Authors, as a list of names or of objects with a name."""
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > MOST_AUTHORS:
        raise ValueError(f"authors must be a list of at most {MOST_AUTHORS} names, got {_short(value)}")
    found = (one.get("name") if isinstance(one, Mapping) else one for one in value)
    return tuple(name for one in found if (name := clean(one, "authors", LONGEST["name"])))


def _categories(value: Any) -> tuple[str, ...]:
    given = value.split() if isinstance(value, str) else value
    if given is None:
        return ()
    if not isinstance(given, Sequence) or len(given) > MOST_CATEGORIES:
        raise ValueError(f"categories must be a list of at most {MOST_CATEGORIES}, got {_short(value)}")
    for one in given:
        if not isinstance(one, str) or not CATEGORY.fullmatch(one):
            raise ValueError(f"categories must be such as cs.LG, got {_short(one)}")
    return tuple(given)


def _address(row: Mapping[str, Any], field: str) -> str:
    text = _text(row, field)
    if text and not re.fullmatch(r"https?://[^\s<>\"'\\]+", text):
        raise ValueError(f"{field} must be an address that begins with https://, got {_short(text)}")
    return text


def _day(row: Mapping[str, Any], field: str) -> str:
    text = _text(row, field)
    if re.fullmatch(r"\d{4}-\d\d", text):
        return _moment({field: f"{text}-01"}, field)[:7]
    return _moment(row, field)[:10]


def _moment(row: Mapping[str, Any], field: str) -> str:
    """A day as it is; a moment in UTC to the second, so that texts sort as moments do."""
    text = _text(row, field)
    if not text:
        return ""
    try:
        found = datetime.datetime.fromisoformat(text)
        if found.tzinfo:
            found = found.astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{field} must be a day such as 2024-05-17, or with a time, got {_short(text)}"
        ) from None
    written = found.isoformat()
    return written[:10] if len(text) <= 10 else f"{written[:19]}Z"


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
