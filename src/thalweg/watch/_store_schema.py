"""What a run store's file holds, and how one of an earlier thalweg becomes one of today's."""

from __future__ import annotations

import sqlite3

APPLICATION = 0x7468616C  # "thal", in the header of every store of ours
SCHEMA = 2
LATEST = 2**53  # from here on a browser, whose numbers are floats, takes two steps for one

FIRST = """
create table runs (id integer primary key, name text not null, started real not null, seen real not null,
    ended real, outcome text, steps integer not null default 0, about text not null);
create table series (id integer primary key, run integer not null references runs, name text not null,
    layers text not null, unique (run, name, layers));
create table readings (series integer not null references series, step integer not null, time real not null,
    value real, layers blob, extra text);
create index readings_by_step on readings (series, step);
create table findings (id integer primary key, run integer not null references runs, step integer not null,
    time real not null, finding text not null);
"""

# Least and greatest value, each with its step, of a series in every stretch of ``width`` steps.
COARSE = """
create table coarse (series integer not null references series, width integer not null,
    bucket integer not null, low real not null, low_step integer not null, high real not null,
    high_step integer not null, primary key (series, width, bucket)) without rowid;
"""

WIDTHS = (16, 256, 4096, 65536)
FINITE = "abs(value) < 9e999"
GAP = "(value is null or abs(value) >= 9e999)"

# Of a finding that others have damaged neither is known, and no index may fail for it.
NAME, SEVERITY = (
    f"case when json_valid(finding) then json_extract(finding, '$.{key}') end" for key in ("name", "severity")
)

# Indexes are no new schema: an earlier thalweg keeps them up as well, and reads a store without them.
INDEXES = f"""
create index if not exists gaps on readings (series, step) where {GAP};
create index if not exists findings_by_run on findings (run);
create index if not exists findings_by_name on findings (run, {NAME});
create index if not exists findings_by_severity on findings (run, {SEVERITY});
"""


def make(db: sqlite3.Connection) -> None:
    """The tables of an empty file; within a transaction."""
    _run(db, FIRST + COARSE + INDEXES)
    db.execute(f"pragma application_id = {APPLICATION}")
    db.execute(f"pragma user_version = {SCHEMA}")


def upgrade(db: sqlite3.Connection, version: int) -> None:
    """Bring the tables of ``version`` up to date; within a transaction."""
    if version < 2:
        _run(db, COARSE)
        for finer, width in zip((1, *WIDTHS), WIDTHS, strict=False):
            summarise(db, width, finer)
        db.execute(f"pragma user_version = {SCHEMA}")
    _run(db, INDEXES)


def summarise(db: sqlite3.Connection, width: int, finer: int, where: str = "", about: tuple = ()) -> None:
    """Fill one width of the coarse table from a finer one, or from the readings where that is 1."""
    parts = []
    for kind, order in (("low", "min"), ("high", "max")):
        if finer == 1:
            picked, place, source = f"{order}(value)", "step", f"readings where {FINITE}"
        else:
            picked, place, source = f"{order}({kind})", f"{kind}_step", f"coarse where width = {finer}"
        # SQLite takes the other columns from the row that holds the least or the greatest.
        bucket = f"{'step' if finer == 1 else f'bucket * {finer}'} / {width}"
        parts.append(
            f"(select series, {bucket} as bucket, {picked} as {kind}, {place} as {kind}_step "
            f"from {source} {where} group by 1, 2)"
        )
    db.execute(
        f"insert or replace into coarse select series, {width}, bucket, low, low_step, high, high_step "
        f"from {parts[0]} join {parts[1]} using (series, bucket)",
        about * 2,
    )


def _run(db: sqlite3.Connection, statements: str) -> None:
    # Not executescript: it would commit first.
    for statement in statements.split(";")[:-1]:
        db.execute(statement)
