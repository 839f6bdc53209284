"""The tables of imported papers; each script is applied once, ever, so that old ones are never edited."""

from __future__ import annotations

SCHEMA = (
    """
    CREATE TABLE imported (
        paper INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL, abstract TEXT NOT NULL, authors TEXT NOT NULL, published TEXT NOT NULL,
        updated TEXT NOT NULL, categories TEXT NOT NULL, organisation TEXT NOT NULL, repository TEXT NOT NULL,
        link TEXT NOT NULL, source TEXT NOT NULL, topics TEXT NOT NULL, room TEXT NOT NULL,
        addresses TEXT NOT NULL, added REAL NOT NULL
    );
    CREATE INDEX imported_by_day ON imported (published, paper);
    CREATE TABLE days (day TEXT PRIMARY KEY, papers INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE labels (
        label INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, papers INTEGER NOT NULL,
        UNIQUE (kind, name)
    );
    CREATE TABLE labelled (
        label INTEGER NOT NULL, day TEXT NOT NULL, paper INTEGER NOT NULL,
        PRIMARY KEY (label, day, paper)
    ) WITHOUT ROWID;
    CREATE TABLE library (one INTEGER PRIMARY KEY CHECK (one = 1), change INTEGER NOT NULL);
    INSERT INTO library VALUES (1, 0);
    """,
    # plain_title is given to SQLite in prepare.
    """
    ALTER TABLE imported ADD COLUMN plain TEXT NOT NULL DEFAULT '';
    UPDATE imported SET plain = plain_title(title);
    CREATE INDEX imported_by_title ON imported (plain);
    CREATE TABLE aliases (id TEXT PRIMARY KEY, kept TEXT NOT NULL) WITHOUT ROWID;
    """,
    "CREATE INDEX imported_by_repository ON imported (lower(repository)) WHERE repository <> ''",
    # Within a day the latest submission comes first; days that have not come become those of the import.
    """
    ALTER TABLE imported ADD COLUMN submitted TEXT NOT NULL DEFAULT '';
    UPDATE labelled SET day = (SELECT date(added, 'unixepoch') FROM imported WHERE paper = labelled.paper)
        WHERE paper IN (SELECT paper FROM imported WHERE published > date('now', '+1 day'));
    UPDATE imported SET published = date(added, 'unixepoch'), updated = ''
        WHERE published > date('now', '+1 day');
    DELETE FROM days;
    INSERT INTO days SELECT published, count(*) FROM imported GROUP BY published;
    DROP INDEX imported_by_day;
    CREATE INDEX imported_by_time ON imported (published, submitted, paper);
    """,
    # Rows that were replaced: what of the search index is out of date.
    """
    CREATE TABLE replaced (paper INTEGER PRIMARY KEY, change INTEGER NOT NULL);
    CREATE INDEX replaced_by_change ON replaced (change);
    """,
    "CREATE INDEX aliases_by_kept ON aliases (kept)",
)
