"""One paper under several ids: an archive's name, a DOI, an arXiv id, a catalog key; known by its title.

Two ids of the same source (two of arXiv, say) are two papers, whatever they are called.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Mapping

from thalweg.desk.imported import arxiv_id

__all__ = ["follow", "may_be_same", "plain_title"]

SHORTEST = 20  # letters and digits below which a title names no paper
# Where an id of a paper stands for what somebody did: a column ``paper`` in each.
TABLES = ("votes", "comments", "mailed")


def plain_title(title: object) -> str:
    """Letters and digits alone, without case and accents; empty where these are too few to name a paper."""
    if not isinstance(title, str):
        return ""
    plain = "".join(filter(str.isalnum, unicodedata.normalize("NFKD", title).casefold()))
    return plain if len(plain) >= SHORTEST else ""


def may_be_same(one: str, other: str) -> bool:
    """Whether two ids can be of one paper, if their titles are equal."""
    return _source(one) != _source(other)


def follow(on: sqlite3.Connection, moves: Mapping[str, str]) -> None:
    """Votes, comments and what was mailed of papers go with them from old ids to new ones.

    Who voted for both, or was sent both, has one of the two.
    """
    there = {row[0] for row in on.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table in there.intersection(TABLES):
        # Of a mail the ledger keeps the id, everything else the key.
        named = moves if table == "mailed" else {_key(old): _key(new) for old, new in moves.items()}
        held = {row[0] for row in on.execute(f"SELECT DISTINCT paper FROM {table}")}
        for before in held & named.keys():
            on.execute(f"UPDATE OR IGNORE {table} SET paper = ? WHERE paper = ?", (named[before], before))
            on.execute(f"DELETE FROM {table} WHERE paper = ?", (before,))


def _key(name: str) -> str:
    return name.replace("/", "~")


def _source(name: str) -> str:
    return "arxiv" if arxiv_id(name) else name.partition(":")[0]
