"""Whether what is stored in the desk's database can be what was put there, for the health page.

SQLite keeps any value in any column, and takes a damaged one for what it then looks like.
"""

from __future__ import annotations

from collections.abc import Iterator

from starlette.datastructures import State

from thalweg.desk.check import Check
from thalweg.desk.database import Database
from thalweg.desk.times import LAST

__all__ = ["damaged_rows", "damaged_values", "delete_damaged"]

LOOKED_AT = 20_000  # rows of a table: of a million it takes seconds
TYPES = {
    "TEXT": "typeof({0}) = 'text'",
    "INTEGER": f"typeof({{0}}) = 'integer' AND {{0}} BETWEEN 0 AND {1 << 53}",
    "REAL": f"typeof({{0}}) = 'real' AND {{0}} BETWEEN 0 AND {LAST}",  # moments all, in seconds of 1970
    "BLOB": "typeof({0}) = 'blob'",
}
DAY = "({0} = '' OR date({0} || substr('-01', length({0}) - 6)) >= {0} AND length({0}) IN (7, 10))"
LIST = "json_valid({0}) AND json_type({0}) = 'array'"
ADDRESS = "({0} = '' OR {0} LIKE 'http%')"
EVERY, ROLE = "{0} IN ('daily', 'weekly')", "{0} IN ('member', 'moderator', 'owner')"
# What has one of few shapes, by table and column.
SHAPES = {
    "imported": {
        **dict.fromkeys(("authors", "categories", "topics", "addresses"), LIST),
        **dict.fromkeys(("link", "repository"), ADDRESS),
        "id": "{0} GLOB '*[0-9:]*'",
        "title": "{0} != ''",
        "published": DAY,
        "updated": "({0} = '' OR {0} GLOB '[0-9][0-9][0-9][0-9]-*')",
        "submitted": "({0} = '' OR {0} GLOB '[0-9][0-9]:*')",
    },
    "days": {"day": DAY},
    "labels": {"kind": "{0} IN ('topic', 'room', 'finding')"},
    "labelled": {"day": DAY},
    "aliases": {"kept": "{0} IN (SELECT id FROM imported)"},
    "comments": {"removed": "{0} IN ('', 'author', 'moderator')"},
    "fetches": dict.fromkeys(("since", "until", "upto"), "({0} = '' OR {0} GLOB '[0-9][0-9][0-9][0-9]-*')"),
    "people": {"role": ROLE},
    "invitations": {"role": ROLE},
    "mails": {"state": "{0} IN ('prepared', 'sending', 'sent', 'unknown')"},
    "subscribers": {"every": EVERY, "wants": "json_valid({0})"},
    "subscription_requests": {"every": EVERY, "wants": "json_valid({0})"},
}
# What was counted and what is there: papers a day, papers a label, and the count of changes.
COUNTS = {
    "papers by day": "SELECT published, count(*) FROM imported GROUP BY 1 "
    "EXCEPT SELECT day, papers FROM days UNION ALL "
    "SELECT 1, 1 WHERE (SELECT total(papers) FROM days) != (SELECT count(*) FROM imported) LIMIT 1",
    "papers by label": "SELECT label, count(*) FROM labelled GROUP BY 1 "
    "EXCEPT SELECT label, papers FROM labels UNION ALL "
    "SELECT 1, 1 WHERE (SELECT total(papers) FROM labels) != (SELECT count(*) FROM labelled) LIMIT 1",
    "changes": "SELECT 1 WHERE (SELECT count(*) FROM library) != 1",
}


def damaged_values(database: Database) -> dict[str, int]:
    """Tables with their columns (``imported.published``) to how many values of them cannot be right."""
    found: dict[str, int] = {}
    for row in database.rows("SELECT name, sql FROM sqlite_schema WHERE type = 'table'"):
        table, newest = row["name"], "" if "WITHOUT ROWID" in row["sql"] else "ORDER BY rowid DESC"
        if not (right := _conditions(database, table)):
            continue
        sums = ", ".join(f"sum(({condition}) IS NOT TRUE)" for condition in right.values())
        (wrong,) = database.rows(f'SELECT {sums} FROM (SELECT * FROM "{table}" {newest} LIMIT {LOOKED_AT})')
        found |= {f"{table}.{name}": count for name, count in zip(right, wrong, strict=True) if count}
    return found


def damaged_rows(database: Database, table: str, column: str, most: int) -> list[str]:
    """What ``most`` rows of which a value cannot be right, the latest, have in a column."""
    right = " AND ".join(f"({condition})" for condition in _conditions(database, table).values())
    latest = f'SELECT * FROM "{table}" ORDER BY rowid DESC LIMIT {LOOKED_AT}'
    sql = f'SELECT "{column}" FROM ({latest}) WHERE ({right}) IS NOT TRUE LIMIT {most}'
    return [str(row[0]) for row in database.rows(sql)]


def delete_damaged(database: Database, table: str) -> int:
    """Take rows of which a value cannot be right out of a table; how many that was."""
    right = " AND ".join(f"({condition})" for condition in _conditions(database, table).values())
    with database.write() as on:
        return on.execute(f'DELETE FROM "{table}" WHERE ({right}) IS NOT TRUE').rowcount if right else 0


def _conditions(database: Database, table: str) -> dict[str, str]:
    """What holds for each column of a table, as SQL, if anything is known."""
    columns = database.rows('SELECT name, type, "notnull" FROM pragma_table_info(?)', (table,))
    right = {one["name"]: _right(table, one["name"], one["type"], one["notnull"]) for one in columns}
    return {name: condition for name, condition in right.items() if condition}


def _right(table: str, column: str, kind: str, needed: int) -> str:
    if kind not in TYPES:
        return ""
    quoted = f'"{column}"'
    said = TYPES[kind].format(quoted)
    if shape := SHAPES.get(table, {}).get(column):
        said += f" AND {shape.format(quoted)}"
    return said if needed else f"({quoted} IS NULL OR {said})"


def checks(state: State) -> Iterator[Check]:
    """Values that are no values of their column, and counts that are not of what is there."""
    if state.database is None:
        return
    wrong = [f"{name} ({count})" for name, count in damaged_values(state.database).items()]
    wrong += [f"the number of {name}" for name, sql in COUNTS.items() if state.database.rows(sql)]
    if wrong:
        what = f"damaged: {', '.join(wrong)}; thalweg papers repair puts right what can be"
        yield Check("stored values", "bad", what)
    else:
        yield Check("stored values", "good", "are what was stored, as far as their kind shows")
