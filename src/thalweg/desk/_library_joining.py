"""Papers that were stored twice, before titles were compared or under titles that became equal: made one.

The rule is that of imports: a row with an arXiv id stays, or else the one that came first.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence

from thalweg.desk._library_rows import filled, paper_as_given
from thalweg.desk._library_twins import rows_of_titles
from thalweg.desk._library_writing import forget, write
from thalweg.desk.imported import arxiv_id
from thalweg.desk.same_paper import follow, may_be_same, plain_title
from thalweg.desk.tagging import Tags


def titles_of_several(on: sqlite3.Connection, after: str, most: int) -> list[str]:
    """The first ``most`` plain titles beyond one that several rows have, in their order."""
    rows = on.execute(
        "SELECT plain FROM imported WHERE plain > ? GROUP BY plain HAVING count(*) > 1 "
        "ORDER BY plain LIMIT ?",
        (after, most),
    )
    return [row[0] for row in rows]


def join(
    on: sqlite3.Connection, titles: Collection[str], guess: Callable[[Sequence[str]], Sequence[Tags]]
) -> int:
    """Make one of rows that are the same paper; gives how many rows ended.

    What stays takes what only the other knew; votes, comments and what was mailed go with it.
    """
    groups: dict[str, list[sqlite3.Row]] = defaultdict(list)
    for row in rows_of_titles(on, titles):
        groups[plain_title(row["title"])].append(row)
    pairs = [pair for rows in groups.values() for pair in _pairs(rows)]
    if not pairs:
        return 0
    there = {kept["id"]: kept for kept, _ in pairs}
    before = {name: paper_as_given(row) for name, row in there.items()}
    after = dict(before)
    for kept, gone in pairs:
        after[kept["id"]] = filled(after[kept["id"]], gone)
    moves = {gone["id"]: kept["id"] for kept, gone in pairs}
    forget(on, [gone for _, gone in pairs])
    on.executemany("UPDATE aliases SET kept = ? WHERE kept = ?", [(new, old) for old, new in moves.items()])
    on.executemany("REPLACE INTO aliases VALUES (?, ?)", moves.items())
    follow(on, moves)
    write(on, (), [one for name, one in after.items() if one != before[name]], there, guess)
    return len(pairs)


def _pairs(rows: Iterable[sqlite3.Row]) -> list[tuple[sqlite3.Row, sqlite3.Row]]:
    """Of rows with one title, the one that stays with each that is the same paper."""
    first, *others = sorted(rows, key=lambda row: (not arxiv_id(row["id"]), row["paper"]))
    return [(first, row) for row in others if may_be_same(first["id"], row["id"])]
