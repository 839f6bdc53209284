"""Opening the file of a run store: made, checked, and brought up to date if it is to be written."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thalweg.watch._store_schema import APPLICATION, SCHEMA, make, upgrade


class EmptyStore(ValueError):
    """A file in which nothing has been stored: a run is about to make a store of it."""


def open_file(path: Path, write: bool, wait: float = 5.0) -> sqlite3.Connection:
    """A connection to a store of ours; with ``write`` the file is made, or upgraded, if need be.

    Raises:
        ValueError: the file is not there, is no store of ours or a newer one's, cannot be read or written.
    """
    if not write and not path.is_file():
        why = "a folder" if path.is_dir() else "no such file"
        raise ValueError(f"store must be an existing run store, got {str(path)!r}: {why}")
    try:
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
        db = _connect(path, "rwc" if write else "ro", wait)
    except (sqlite3.Error, OSError) as error:
        raise ValueError(f"store {str(path)!r} cannot be opened: {error}") from None
    try:
        try:
            _check(db, path, write, wait)
        except sqlite3.OperationalError:
            # A closed store where nobody may write: reading it needs no lock, but SQLite must be told.
            if write or Path(f"{path}-wal").exists():
                raise
            db.close()
            db = _connect(path, "ro&immutable=1", wait)
            _check(db, path, write, wait)
    except sqlite3.Error as error:
        db.close()
        why = "is not a run store"
        if isinstance(error, sqlite3.OperationalError):
            why = f"cannot be {'written' if write else 'read'}"
        raise ValueError(f"store {str(path)!r} {why}: {error}") from None
    except ValueError:
        db.close()
        raise
    return db


@contextmanager
def in_words(path: str | Path, verb: str = "read") -> Iterator[None]:
    """What SQLite cannot do with the store, such as on a full disk or in a damaged file, is a ValueError."""
    try:
        yield
    except sqlite3.Error as error:
        raise ValueError(f"store {str(path)!r} cannot be {verb}: {error}") from None


def identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from another at the same path; None if there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def version(db: sqlite3.Connection) -> int:
    """Of the tables in the file."""
    (found,) = db.execute("pragma user_version").fetchone()
    return found


def _connect(path: Path, mode: str, wait: float) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, check_same_thread=False, isolation_level=None, timeout=wait)


def _check(db: sqlite3.Connection, path: Path, write: bool, wait: float) -> None:
    if write and _blank(db):
        _log_ahead(db, wait)
        db.execute("begin immediate")
        # Another process may have made the store since we looked.
        if _blank(db):
            make(db)
        db.execute("commit")
    (application,) = db.execute("pragma application_id").fetchone()
    if application != APPLICATION:
        if _blank(db):
            raise EmptyStore(f"store {str(path)!r} is not a run store of thalweg: it holds nothing")
        raise ValueError(f"store {str(path)!r} is not a run store of thalweg")
    found = version(db)
    if found > SCHEMA:
        raise ValueError(f"store {str(path)!r} has schema {found}, this thalweg reads up to {SCHEMA}")
    if not write:
        return
    # In WAL mode this survives the death of the process; only a power cut can lose the last commits.
    db.execute("pragma synchronous = normal")
    db.execute("begin immediate")
    # Another process may have brought it up to date since we looked.
    upgrade(db, version(db))
    db.execute("update runs set seen = seen where 0")
    db.execute("commit")


def _log_ahead(db: sqlite3.Connection, wait: float) -> None:
    """Put the file into WAL mode, for which SQLite does not wait where several begin to write at once."""
    until = time.monotonic() + wait
    while True:
        try:
            db.execute("pragma journal_mode = wal")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.02)


def _blank(db: sqlite3.Connection) -> bool:
    """Whether there is nothing in the file: no stamps and no tables."""
    asked = ("pragma application_id", "pragma user_version", "select count(*) from sqlite_master")
    return not any(db.execute(one).fetchone()[0] for one in asked)
