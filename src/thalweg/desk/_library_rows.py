"""Rows of the table of imported papers: what is in one, and which of two versions is kept."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence

from thalweg.desk.imported import Imported, arxiv_id
from thalweg.desk.paper import Paper
from thalweg.desk.tagging import Tags

FIELDS = (
    "paper, id, title, abstract, authors, published, updated, categories, organisation, repository, link, "
    "source, topics, room, addresses, added"
)


def paper_of_row(row: sqlite3.Row) -> Paper:
    """A row of the table as the desk shows it; what was guessed is marked."""
    return Paper(
        key=row["id"].replace("/", "~"),
        title=row["title"],
        summary=row["abstract"],
        arxiv=arxiv_id(row["id"]),
        date=row["published"],
        authors=tuple(json.loads(row["authors"])),
        organisation=row["organisation"],
        room=row["room"],
        topics=tuple(json.loads(row["topics"])),
        addresses=tuple(json.loads(row["addresses"])),
        link=row["link"],
        repository=row["repository"],
        automatic=True,
        added=row["added"],
    )


def rows_of_ids(on: sqlite3.Connection, names: Iterable[str]) -> list[sqlite3.Row]:
    return on.execute(
        f"SELECT {FIELDS} FROM imported WHERE id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(names)),),
    ).fetchall()


def later(row: sqlite3.Row, one: Imported) -> Imported | None:
    """What to keep of a paper that is there already; None for what is there."""
    corrected = one.updated == row["updated"] and one.source == row["source"]
    if one.updated <= row["updated"] and not corrected:
        return None
    kept = {
        name: getattr(one, name) or row[name] for name in ("published", "organisation", "repository", "link")
    }
    merged = Imported(**{**one.__dict__, **kept})
    return None if tuple(row)[1:12] == columns(merged) else merged


def columns(one: Imported) -> tuple[str, ...]:
    return tuple(_json(value) if isinstance(value, tuple) else value for value in one.__dict__.values())


def tags_of_row(row: sqlite3.Row) -> Tags:
    return Tags(tuple(json.loads(row["topics"])), row["room"], tuple(json.loads(row["addresses"])))


def tag_columns(tags: Tags) -> tuple[str, str, str]:
    return _json(tags.topics), tags.room, _json(tags.addresses)


def _json(values: Sequence[str]) -> str:
    return json.dumps(values, ensure_ascii=False)
