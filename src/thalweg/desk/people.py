"""Who may do more than read: people by name, and the invitation links by which they come."""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
import unicodedata
from dataclasses import dataclass

from thalweg._core.checks import check_choice, nearest
from thalweg.desk.database import Database
from thalweg.desk.passwords import hash_password, password_fits

__all__ = ["Invitation", "NotOwner", "Person"]

ROLES = ("member", "moderator", "owner")
INVITED_FOR = 7 * 86400.0  # seconds that an invitation holds
LONGEST_NAME = 40
SCHEMA = (
    """
    CREATE TABLE people (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE,
        role TEXT NOT NULL, password TEXT NOT NULL, since REAL NOT NULL
    );
    CREATE TABLE invitations (
        hash TEXT PRIMARY KEY, name TEXT NOT NULL, folded TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
        person INTEGER REFERENCES people (id) ON DELETE CASCADE, expires REAL NOT NULL
    );
    CREATE TABLE sessions (
        id INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL UNIQUE,
        person INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
        since REAL NOT NULL, expires REAL NOT NULL, agent TEXT NOT NULL
    );
    CREATE INDEX sessions_person ON sessions (person);
    """,
)


@dataclass(frozen=True)
class Person:
    """Somebody with a name and a role, one of ``ROLES``; ``since`` is in seconds of 1970."""

    id: int
    name: str
    role: str
    since: float


class NotOwner(ValueError):
    """Who asks is no owner (any more), or would put an end to being one."""


@dataclass(frozen=True)
class Invitation:
    """What a link stands for; ``person`` is set where it only gives somebody a new password."""

    name: str
    role: str
    person: int | None
    expires: float


def prepare(database: Database) -> None:
    """Bring the tables."""
    database.ensure("people", SCHEMA)


def hashed(token: str) -> str:
    """How a token is kept: it is long and random, so that a plain hash cannot be turned round."""
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def checked_name(name: str) -> str:
    """A name to show, normalised.

    Raises:
        ValueError: it is empty, too long, or has characters that do not show.
    """
    name = " ".join(unicodedata.normalize("NFKC", name).split())
    if not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(f"the name must have 1 to {LONGEST_NAME} characters, got {len(name)}")
    # Letters, marks, numbers, punctuation, symbols and the blank; no control or direction characters.
    if bad := [one for one in name if unicodedata.category(one)[0] not in "LMNPS" and one != " "]:
        raise ValueError(f"the name must not hold U+{ord(bad[0]):04X}, which does not show")
    return name


def invite(database: Database, name: str, role: str = "member") -> str:
    """The token of a new invitation, which replaces an older one for the same name.

    Raises:
        ValueError: the name is none or taken, or there is no such role.
    """
    name = checked_name(name)
    check_choice("role", role, ROLES)
    if _row(database, name):
        raise ValueError(f"the name {name!r} is taken")
    return _invited(database, name, role, None)


def renew(database: Database, name: str) -> str:
    """The token of a link by which somebody sets a new password.

    Raises:
        ValueError: nobody has the name.
    """
    person = named(database, name)
    return _invited(database, person.name, person.role, person.id)


def _invited(database: Database, name: str, role: str, person: int | None) -> str:
    token, now = secrets.token_urlsafe(32), time.time()
    with database.write() as on:
        on.execute("DELETE FROM invitations WHERE expires < ? OR folded = ?", (now, name.casefold()))
        on.execute(
            "INSERT INTO invitations VALUES (?, ?, ?, ?, ?, ?)",
            (hashed(token), name, name.casefold(), role, person, now + INVITED_FOR),
        )
    return token


def invitation(database: Database, token: str) -> Invitation | None:
    """What a token stands for, or None where it is unknown, used or expired."""
    rows = database.rows(
        "SELECT name, role, person, expires FROM invitations WHERE hash = ? AND expires > ?",
        (hashed(token), time.time()),
    )
    return Invitation(*rows[0]) if rows else None


def join(database: Database, token: str, name: str, password: str) -> Person:
    """Use an invitation up: a new person, or a new password for one who is there, signed out everywhere.

    Raises:
        ValueError: the invitation does not hold, the name is none or taken, or the password is too short.
    """
    found = invitation(database, token)
    if found is None:
        raise ValueError("this invitation was used or has expired: ask for a new one")
    name = checked_name(name) if found.person is None else found.name
    if name.casefold() == password.casefold():
        raise ValueError("the password must differ from the name")
    kept, now = hash_password(password), time.time()
    with database.write() as on:
        if not on.execute("DELETE FROM invitations WHERE hash = ?", (hashed(token),)).rowcount:
            raise ValueError("this invitation was used or has expired: ask for a new one")
        if found.person is not None:
            on.execute("UPDATE people SET password = ? WHERE id = ?", (kept, found.person))
            on.execute("DELETE FROM sessions WHERE person = ?", (found.person,))
        elif on.execute("SELECT 1 FROM people WHERE folded = ?", (name.casefold(),)).fetchone():
            raise ValueError(f"the name {name!r} is taken: choose another")
        else:
            on.execute(
                "INSERT INTO people (name, folded, role, password, since) VALUES (?, ?, ?, ?, ?)",
                (name, name.casefold(), found.role, kept, now),
            )
    row = _row(database, name)
    assert row is not None
    return _person(row)


def recognise(database: Database, name: str, password: str) -> Person | None:
    """Who has this name and password; an unknown name takes as long as a wrong password."""
    row = _row(database, unicodedata.normalize("NFKC", " ".join(name.split())))
    fits = password_fits(password, row["password"] if row else None)
    return _person(row) if row and fits else None


def change_password(database: Database, person: Person, password: str, new: str) -> None:
    """Put a new password in the place of the old one, and end all sessions.

    Raises:
        ValueError: the old one is wrong, or the new one is too short.
    """
    if recognise(database, person.name, password) != person:
        raise ValueError("the present password is not right")
    if person.name.casefold() == new.casefold():
        raise ValueError("the password must differ from the name")
    kept = hash_password(new)
    with database.write() as on:
        on.execute("UPDATE people SET password = ? WHERE id = ?", (kept, person.id))
        on.execute("DELETE FROM sessions WHERE person = ?", (person.id,))


def everyone(database: Database) -> list[Person]:
    """All people, by name."""
    return [_person(row) for row in database.rows("SELECT * FROM people ORDER BY folded")]


def anyone(database: Database | None) -> bool:
    """Whether there is somebody at all; without anybody the desk is read-only."""
    try:
        return database is not None and bool(database.rows("SELECT 1 FROM people LIMIT 1"))
    except sqlite3.Error:
        return False


def change_role(database: Database, person: int, role: str, by: Person | None = None) -> None:
    """Give somebody another role, which holds from their next request on.

    Args:
        by: the owner who does it; None is who has the machine, who may leave the desk without an owner.

    Raises:
        ValueError: there is no such role.
        NotOwner: ``by`` is no owner at this moment, or means themselves, so that an owner always stays.
    """
    check_choice("role", role, ROLES)
    with database.write() as on:
        _check_owner(on, person, by, "changes their own role")
        on.execute("UPDATE people SET role = ? WHERE id = ?", (role, person))


def remove(database: Database, person: int, by: Person | None = None) -> None:
    """Take somebody's place away, with sessions and votes; comments stay, without a name.

    Args and errors are as for :func:`change_role`.
    """
    with database.write() as on:
        _check_owner(on, person, by, "removes themselves")
        on.execute("DELETE FROM people WHERE id = ?", (person,))


def _check_owner(on: sqlite3.Connection, person: int, by: Person | None, what: str) -> None:
    if by is None:
        return
    if by.id == person:
        raise NotOwner(f"nobody {what} here: the desk would be left without an owner")
    # Another owner may have acted since the request came; this transaction and theirs come one by one.
    if not on.execute("SELECT 1 FROM people WHERE id = ? AND role = 'owner'", (by.id,)).fetchone():
        raise NotOwner("only an owner may do that, and somebody has just taken that role away")


def named(database: Database, name: str) -> Person:
    """Who has this name.

    Raises:
        ValueError: nobody has it; it names the nearest.
    """
    row = _row(database, checked_name(name))
    if row is None:
        near = nearest(name, (one.name for one in everyone(database)))
        raise ValueError(f"nobody has the name {name!r}{near}")
    return _person(row)


def _row(database: Database, name: str) -> sqlite3.Row | None:
    rows = database.rows("SELECT * FROM people WHERE folded = ?", (name.casefold(),))
    return rows[0] if rows else None


def _person(row: sqlite3.Row) -> Person:
    return Person(row["id"], row["name"], row["role"], row["since"])
