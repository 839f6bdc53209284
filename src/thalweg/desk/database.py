"""The desk's own database: one SQLite file in the user's data folder, where what was confirmed stays.

Each part of the desk brings its own tables (:meth:`Database.ensure`), so that none has to know the others.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Database", "data_folder", "database_in"]

WAIT = 10.0  # seconds that a writer waits for another


def data_folder() -> Path:
    """Where the desk keeps its data unless told otherwise: a folder in ``~/.local/share``, or its like."""
    from platformdirs import user_data_path

    return user_data_path("thalweg", appauthor=False)


def database_in(data: Path | None) -> Database:
    """The database that a command works on.

    Args:
        data: as its option ``--data`` names it; None is the user's data folder.

    Raises:
        ValueError: it is no folder that can be written.
        sqlite3.Error: the file in it is none that can be used.
    """
    folder = data or data_folder()
    try:
        return Database(folder)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"--data must be a folder that can be written, got {folder} ({why})") from None


class Database:
    """SQLite in WAL mode; a commit is on the disk when :meth:`write` returns (``synchronous=FULL``).

    Args:
        folder: made if missing; the file in it is ``desk.sqlite``, readable by its owner alone.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "desk.sqlite"
        if not self.path.exists():
            self.path.touch(mode=0o600)
        self._own = threading.local()
        with self.write() as on:
            on.execute("CREATE TABLE IF NOT EXISTS schemas (part TEXT PRIMARY KEY, version INTEGER NOT NULL)")

    def ensure(self, part: str, changes: Sequence[str]) -> None:
        """Bring the tables of a part of the desk up to date.

        Args:
            part: its name.
            changes: SQL scripts, oldest first; each is applied once, ever, so that old ones are never edited.

        Raises:
            ValueError: the file was written by a newer version, or does not say by which.
        """
        with self.write() as on:
            row = on.execute("SELECT version FROM schemas WHERE part = ?", (part,)).fetchone()
            have = row[0] if row else 0
            if not isinstance(have, int) or have < 0:
                raise ValueError(f"{self.path} is damaged: {part} is said to be at version {have!r}")
            if have > len(changes):
                raise ValueError(
                    f"{self.path} was written by a newer thalweg: {part} is at version {have}, "
                    f"this one knows {len(changes)}"
                )
            for script in changes[have:]:
                for statement in _statements(script):
                    on.execute(statement)
            on.execute("INSERT OR REPLACE INTO schemas VALUES (?, ?)", (part, len(changes)))

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection of this thread; rows answer to names and to positions."""
        found = getattr(self._own, "connection", None)
        if found is None:
            found = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            found.row_factory = sqlite3.Row
            found.text_factory = _text
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA synchronous = FULL")
            found.execute("PRAGMA foreign_keys = ON")
            self._own.connection = found
        return found

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[sqlite3.Row]:
        """All rows of a question, read at one moment."""
        return self.connection.execute(sql, tuple(values)).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """All of it or none of it: committed to the disk at the end, rolled back by an exception."""
        connection = self.connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def _text(raw: bytes) -> str:
    """A damaged letter is shown as such: refused, it would take with it every row that is read beside it."""
    return raw.decode("utf8", "replace")


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; ``executescript`` would commit the transaction that holds them."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        yield statement
