"""Imported papers that are here already under another id: one row a paper, which its other ids lead to."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable

from thalweg.desk._library_rows import FIELDS
from thalweg.desk.imported import Imported, arxiv_id
from thalweg.desk.same_paper import follow, may_be_same, plain_title


def rows_of_titles(on: sqlite3.Connection, titles: Iterable[str]) -> list[sqlite3.Row]:
    """Rows with one of these plain titles, empty ones apart."""
    return on.execute(
        f"SELECT {FIELDS} FROM imported WHERE plain IN (SELECT value FROM json_each(?)) AND plain != ''",
        (json.dumps(list(titles)),),
    ).fetchall()


def without_twins(on: sqlite3.Connection, papers: dict[str, Imported]) -> dict[str, Imported]:
    """Of papers that are not here by their id, those that are not here by another one either, by id.

    A paper that was here under an archive's name and now comes with its arXiv id is stored under that from
    now on: its row is changed, and the paper stays among those that are given back.
    """
    sql = "SELECT id FROM aliases WHERE id IN (SELECT value FROM json_each(?))"
    known = {row["id"] for row in on.execute(sql, (json.dumps(list(papers)),))}
    titles = {name: plain_title(one.title) for name, one in papers.items()}
    held: dict[str, list[str]] = defaultdict(list)
    for row in rows_of_titles(on, set(titles.values())):
        held[plain_title(row["title"])].append(row["id"])
    kept, moves = {}, {}
    # Those with an arXiv id first, under which a paper is best known.
    for name in sorted(papers.keys() - known, key=lambda name: (not arxiv_id(name), name)):
        twin = next((other for other in held[titles[name]] if may_be_same(name, other)), None)
        if twin is not None and not arxiv_id(name):
            on.execute("INSERT INTO aliases VALUES (?, ?)", (name, twin))
            continue
        kept[name] = papers[name]
        if twin is not None:
            _rename(on, twin, papers[name])
            moves[twin] = name
            held[titles[name]].remove(twin)
        if titles[name]:
            held[titles[name]].append(name)
    if moves:
        follow(on, moves)
        on.execute("UPDATE library SET change = change + 1")
    return {name: one for name, one in papers.items() if name in kept}


def kept_id(on: sqlite3.Connection, name: str) -> str:
    """The id under which the paper with this one is stored."""
    row = on.execute("SELECT kept FROM aliases WHERE id = ?", (name,)).fetchone()
    return row[0] if row else name


def _rename(on: sqlite3.Connection, old: str, new: Imported) -> None:
    """What comes with the arXiv id counts as later than what was there."""
    on.execute(
        "UPDATE imported SET id = ?, link = ?, updated = '' WHERE id = ?",
        (new.id, new.link, old),
    )
    on.execute("UPDATE aliases SET kept = ? WHERE kept = ?", (new.id, old))
    on.execute("REPLACE INTO aliases VALUES (?, ?)", (old, new.id))
