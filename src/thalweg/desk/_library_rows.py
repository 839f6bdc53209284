"""Rows of the table of imported papers: what is in one, and which of two versions is kept."""

from __future__ import annotations

import datetime
import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from thalweg.desk.imported import Imported, arxiv_id
from thalweg.desk.paper import Paper
from thalweg.desk.periods import start_of
from thalweg.desk.tagging import Tags
from thalweg.desk.times import is_moment

FIELDS = (
    "paper, id, title, abstract, authors, published, updated, categories, organisation, repository, link, "
    "source, submitted, topics, room, addresses, added"
)
SEARCHED = ("title", "abstract", "published", "room", "topics")  # what the search index holds of a row


class Streamed(NamedTuple):
    """What the search index wants of a paper; ``row`` is never given to another one."""

    row: int
    title: str
    abstract: str
    day: str
    room: str
    topics: tuple[str, ...]


def papers_of_rows(rows: Iterable[sqlite3.Row]) -> dict[int, Paper]:
    """Rows of the table as the desk shows them, by number; one without an id or a title is no paper.

    What was guessed is marked, what is damaged is left empty.
    """
    return {row["paper"]: _paper(row) for row in rows if _text(row["id"]) and _text(row["title"])}


def _paper(row: sqlite3.Row) -> Paper:
    return Paper(
        key=row["id"].replace("/", "~"),
        title=_text(row["title"]),
        summary=_text(row["abstract"]),
        arxiv=arxiv_id(row["id"]),
        date=_date(row["published"]),
        authors=_texts(row["authors"]),
        organisation=_text(row["organisation"]),
        room=_text(row["room"]),
        topics=_texts(row["topics"]),
        addresses=_texts(row["addresses"]),
        link=_text(row["link"]),
        repository=_text(row["repository"]),
        automatic=True,
        added=row["added"] if is_moment(row["added"]) else 0.0,
    )


def damaged(row: sqlite3.Row) -> bool:
    """Whether something stands in a row that no import puts there."""
    *texts, added = tuple(row)[1:17]
    lists = (row[name] for name in ("authors", "categories", "topics", "addresses"))
    whole = all(isinstance(text, str) for text in texts) and all(_list(one) is not None for one in lists)
    return not (whole and is_moment(added) and _date(row["published"]) == row["published"])


def made_whole(row: sqlite3.Row) -> tuple[object, ...] | None:
    """The values of ``FIELDS`` with what is damaged left empty; None where it is no paper."""
    if not (_text(row["id"]) and _text(row["title"])):
        return None
    whole = replace(paper_as_given(row), published=_date(row["published"]))
    added = row["added"] if is_moment(row["added"]) else 0.0
    return row["paper"], *columns(whole), *tag_columns(tags_of_row(row)), added


def streamed(row: sqlite3.Row) -> Streamed:
    """A number with ``SEARCHED``; what is damaged is left empty."""
    title, abstract, day, room = (_text(row[name]) for name in SEARCHED[:-1])
    return Streamed(row["paper"], title, abstract, _date(day), room, _texts(row["topics"]))


def rows_of_ids(on: sqlite3.Connection, names: Iterable[str]) -> list[sqlite3.Row]:
    return on.execute(
        f"SELECT {FIELDS} FROM imported WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(names)),),
    ).fetchall()


def later(row: sqlite3.Row, one: Imported) -> Imported | None:
    """What to keep of a paper that is there already; None for what is there."""
    updated = _text(row["updated"])
    corrected = one.updated == updated and one.source == row["source"]
    if one.updated <= updated and not (corrected or damaged(row)):
        return None
    merged = filled(one, row)
    return None if tuple(row)[1:13] == columns(merged) and not damaged(row) else merged


def filled(one: Imported, row: sqlite3.Row) -> Imported:
    """A paper with what is known of it by a row alone."""
    kept: dict[str, Any] = {
        name: getattr(one, name) or _text(row[name])
        for name in ("published", "organisation", "repository", "link")
    }
    if not one.submitted and kept["published"] == row["published"]:
        kept["submitted"] = _text(row["submitted"])
    return replace(one, **kept)


def paper_as_given(row: sqlite3.Row) -> Imported:
    """The paper of a row as an import would give it."""
    lists = {"authors", "categories"}
    given = {field.name: _text(row[field.name]) for field in fields(Imported) if field.name not in lists}
    return Imported(**given, authors=_texts(row["authors"]), categories=_texts(row["categories"]))


def without_future(one: Imported, row: sqlite3.Row | None) -> Imported:
    """A paper as it is kept: a day that has not come is that of the import, and orders no versions.

    Args:
        row: what is there of it.
    """
    today = datetime.datetime.now(datetime.UTC).date()
    tomorrow = (today + datetime.timedelta(days=1)).isoformat()  # which it is somewhere
    if one.published <= tomorrow:
        return one
    updated = "" if one.updated == one.published else one.updated
    published = (row and _date(row["published"])) or today.isoformat()
    return replace(one, published=published, submitted="", updated=updated)


def columns(one: Imported) -> tuple[str, ...]:
    return tuple(_json(value) if isinstance(value, tuple) else value for value in one.__dict__.values())


def tags_of_row(row: sqlite3.Row) -> Tags:
    return Tags(_texts(row["topics"]), _text(row["room"]), _texts(row["addresses"]))


def tag_columns(tags: Tags) -> tuple[str, str, str]:
    return _json(tags.topics), tags.room, _json(tags.addresses)


def _json(values: Sequence[str]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _date(value: object) -> str:
    """A day or a month; empty for anything else."""
    text = _text(value)
    return text if start_of(text) else ""


def _texts(column: object) -> tuple[str, ...]:
    return tuple(map(_text, _list(column) or ()))


def _list(column: object) -> list[object] | None:
    try:
        found = json.loads(_text(column))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None
