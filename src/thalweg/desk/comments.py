"""Comments on papers: written, changed, taken back and removed; the oldest first, in pages."""

from __future__ import annotations

import datetime
import sqlite3
import time
from dataclasses import dataclass

from fastapi import Request

from thalweg.desk.catalog_keys import follow_catalog
from thalweg.desk.database import Database
from thalweg.desk.markdown import rendered
from thalweg.desk.people import Person
from thalweg.desk.rights import may
from thalweg.desk.times import is_moment

__all__ = ["Comment"]

LONGEST = 5000  # characters
EDITABLE = 86400.0  # seconds in which its author may change a comment; others may have answered it by then
TWICE = 600.0  # seconds in which the same words of the same person are one comment, sent again
SHOWN = 50  # on a page, at most
WEIGHT = 60_000  # bytes of HTML of the comments of a page, at most
FRAME = 1000  # bytes of HTML around the words of a comment
SCHEMA = (
    """
    CREATE TABLE comments (
        id INTEGER PRIMARY KEY AUTOINCREMENT, paper TEXT NOT NULL,
        person INTEGER REFERENCES people (id) ON DELETE SET NULL,
        text TEXT NOT NULL, at REAL NOT NULL, edited REAL, removed TEXT NOT NULL DEFAULT ''
    );
    CREATE INDEX comments_paper ON comments (paper, removed, id);
    CREATE INDEX comments_person ON comments (person);
    """,
    "ALTER TABLE comments ADD COLUMN bytes INTEGER",  # of the HTML of its words
)
SELECT = "SELECT comments.*, people.name FROM comments LEFT JOIN people ON people.id = comments.person "
# What its author took back leaves no trace; what a moderator removed leaves a line.
SEEN = "removed != 'author'"


@dataclass(frozen=True)
class Comment:
    """``author`` is empty when they left; ``removed`` is ``"author"``, ``"moderator"`` or empty.

    ``readable`` is false where its row is damaged, of which only the address is sure.
    """

    id: int
    paper: str
    person: int | None
    author: str
    text: str
    at: float
    edited: bool
    removed: str
    readable: bool = True

    @property
    def html(self) -> str:
        return rendered(self.text)

    @property
    def when(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.at, datetime.UTC)

    def editable(self, person: Person | None) -> bool:
        """Whether somebody may change it: its author, for a day."""
        own = person is not None and person.id == self.person and may(person, "edit their own comment")
        return own and self.readable and not self.removed and time.time() - self.at < EDITABLE

    def deletable(self, person: Person | None) -> bool:
        """Whether somebody may take it away: its author, or who may remove another's."""
        if person is None or self.removed:
            return False
        own = person.id == self.person
        return may(person, "delete their own comment" if own else "remove another's comment")


@dataclass(frozen=True)
class Discussion:
    """One page of what is said of a paper; pages count from 1."""

    comments: tuple[Comment, ...]
    page: int
    pages: int
    total: int


def prepare(database: Database) -> None:
    """Bring the table; what is in it follows papers into the catalog."""
    database.ensure("comments", SCHEMA)
    if unknown := database.rows(
        "SELECT id, text FROM comments WHERE bytes IS NULL AND typeof(text) = 'text'"
    ):
        with database.write() as on:
            on.executemany(
                "UPDATE comments SET bytes = ? WHERE id = ? AND bytes IS NULL",
                [(_bytes(row["text"]), row["id"]) for row in unknown],
            )
    follow_catalog(database, "comments")


def checked_text(text: str) -> str:
    """What is kept of a comment.

    Raises:
        ValueError: it is empty or too long.
    """
    text = text.replace("\r\n", "\n").replace("\x00", "").strip()
    if not 1 <= len(text) <= LONGEST:
        raise ValueError(f"a comment must have 1 to {LONGEST} characters, got {len(text)}")
    return text


def write(database: Database, paper: str, person: Person, text: str) -> int:
    """The id of a new comment, or of the same one of a moment ago: a form sent twice is one comment."""
    text, now = checked_text(text), time.time()
    with database.write() as on:
        same = on.execute(
            "SELECT id FROM comments WHERE paper = ? AND person = ? AND text = ? AND removed = '' AND at > ?",
            (paper, person.id, text, now - TWICE),
        ).fetchone()
        if same:
            return same[0]
        made = on.execute(
            "INSERT INTO comments (paper, person, text, at, bytes) VALUES (?, ?, ?, ?, ?)",
            (paper, person.id, text, now, _bytes(text)),
        )
        assert made.lastrowid is not None
        return made.lastrowid


def change(database: Database, comment: Comment, text: str) -> None:
    """Put other words in its place."""
    text = checked_text(text)
    with database.write() as on:
        on.execute(
            "UPDATE comments SET text = ?, bytes = ?, edited = ? WHERE id = ? AND removed = ''",
            (text, _bytes(text), time.time(), comment.id),
        )


def take_away(database: Database, comment: Comment, person: Person) -> None:
    """Its words are gone from the database, too."""
    by = "author" if comment.person == person.id else "moderator"
    with database.write() as on:
        on.execute(
            "UPDATE comments SET text = '', bytes = 0, removed = ? WHERE id = ? AND removed = ''",
            (by, comment.id),
        )


def found(database: Database | None, id: int) -> Comment | None:
    """One comment, unless its author took it back."""
    rows = database.rows(f"{SELECT} WHERE comments.id = ? AND {SEEN}", (id,)) if database else []
    return _comment(rows[0]) if rows else None


def page_of(database: Database, comment: Comment) -> int:
    """The page of the discussion on which a comment stands."""
    return next(
        (number for number, ids in enumerate(_pages(database, comment.paper), 1) if comment.id <= ids[-1]), 1
    )


def _pages(database: Database, paper: str) -> list[list[int]]:
    """The comments of each page, by id: as many as its weight allows."""
    pages: list[list[int]] = []
    weight = 0
    size = "CASE typeof(bytes) WHEN 'integer' THEN max(bytes, 0) ELSE 0 END"
    sql = f"SELECT id, {size} FROM comments WHERE paper = ? AND {SEEN} ORDER BY id"
    for id, size in database.rows(sql, (paper,)):
        weight += FRAME + size
        if not pages or len(pages[-1]) == SHOWN or weight > WEIGHT:
            pages.append([])
            weight = FRAME + size
        pages[-1].append(id)
    return pages


def discussion(request: Request, paper: str) -> Discussion | None:
    """What is said of a paper, on the page that the address asks for, else on the last."""
    database: Database | None = request.app.state.database
    if database is None:
        return None
    try:
        pages = _pages(database, paper)
        asked = request.query_params.get("comments", "")
        number = len(pages)
        if asked.isdecimal() and len(asked) < 9 and 1 <= int(asked) < number:
            number = int(asked)
        ids = pages[number - 1] if pages else [0]
        rows = database.rows(
            f"{SELECT} WHERE paper = ? AND {SEEN} AND comments.id BETWEEN ? AND ? ORDER BY comments.id",
            (paper, ids[0], ids[-1]),
        )
        sql = "SELECT count(*) FROM comments WHERE paper = ? AND removed = ''"
        total = database.rows(sql, (paper,))[0][0]
    except sqlite3.Error as error:
        request.app.state.problems.report("database", f"comments cannot be read: {error}")
        return None
    return Discussion(tuple(_comment(row) for row in rows), max(number, 1), max(len(pages), 1), total)


def _bytes(text: str) -> int:
    return len(rendered(text).encode())


def _comment(row: sqlite3.Row) -> Comment:
    texts = isinstance(row["text"], str) and isinstance(row["paper"], str) and isinstance(row["removed"], str)
    readable = texts and is_moment(row["at"]) and isinstance(row["name"] or "", str)
    if not readable:
        person = row["person"] if isinstance(row["person"], int) else None
        return Comment(row["id"], str(row["paper"]), person, "", "", 0.0, False, "", readable=False)
    return Comment(
        id=row["id"],
        paper=row["paper"],
        person=row["person"],
        author=row["name"] or "",
        text=row["text"],
        at=row["at"],
        edited=row["edited"] is not None,
        removed=row["removed"],
    )
