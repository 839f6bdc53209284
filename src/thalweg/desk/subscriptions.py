"""Who gets mail and about what: asked for on a page, confirmed from the mailbox, ended by one click.

Nobody learns here whether an address is known: asking has one answer, and the mailbox gets the rest.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from dataclasses import dataclass

from thalweg._core.checks import check_choice
from thalweg.desk.database import Database
from thalweg.desk.mailbox import mail_address
from thalweg.desk.wants import Wants

__all__ = ["Subscriber", "Subscriptions"]

EVERY = ("daily", "weekly")
DAY = 86400.0
HOLDS = 3 * DAY  # seconds in which a request can be confirmed
PAUSE = 3600.0  # seconds between two confirmation mails to one address
MOST = 200  # confirmation mails an hour, to all addresses together
SCHEMA = (
    """
    CREATE TABLE subscribers (
        id INTEGER PRIMARY KEY AUTOINCREMENT, folded TEXT NOT NULL UNIQUE, address TEXT NOT NULL,
        secret TEXT NOT NULL UNIQUE, every TEXT NOT NULL, wants TEXT NOT NULL, confirmed REAL NOT NULL,
        since REAL NOT NULL, looked TEXT NOT NULL DEFAULT '',
        refusals INTEGER NOT NULL DEFAULT 0, paused INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE subscription_requests (
        id INTEGER PRIMARY KEY AUTOINCREMENT, folded TEXT NOT NULL, address TEXT NOT NULL,
        every TEXT NOT NULL, wants TEXT NOT NULL, asked REAL NOT NULL, token TEXT UNIQUE,
        done INTEGER NOT NULL DEFAULT 0
    );
    CREATE TABLE never_write (hash BLOB PRIMARY KEY);
    CREATE TABLE never_write_key (only INTEGER PRIMARY KEY CHECK (only = 1), value BLOB NOT NULL);
    """,
)


@dataclass(frozen=True)
class Request:
    """Asked for and not yet confirmed; ``id`` names it to the sender of mail."""

    id: int
    address: str
    every: str
    wants: Wants


@dataclass(frozen=True)
class Subscriber:
    """``secret`` opens their page and ends their mail; papers are new to them that came after ``since``.

    ``looked`` is the week in which there was nothing for them; ``paused`` says that the server refused the
    address again and again. Times are seconds of 1970.
    """

    id: int
    address: str
    secret: str
    every: str
    wants: Wants
    confirmed: float
    since: float
    looked: str
    paused: bool


def prepare(database: Database) -> None:
    """Bring the tables, and the key without which a hash of an address would be as good as the address."""
    database.ensure("subscriptions", SCHEMA)
    with database.write() as on:
        on.execute("INSERT OR IGNORE INTO never_write_key VALUES (1, ?)", (secrets.token_bytes(32),))


class Subscriptions:
    """The tables behind the pages and the digest."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, address: str, every: str, wants: Wants, now: float) -> int | None:
        """Note a request; its id, or None where no mail must go out, which the asker must not be told.

        Raises:
            ValueError: the address or the frequency is none.
        """
        address = mail_address(address, "e-mail address")
        check_choice("every", every, EVERY)
        folded, banned = address.casefold(), self._banned(address)
        with self._database.write() as on:
            on.execute("DELETE FROM subscription_requests WHERE asked < ?", (now - HOLDS,))
            lately = "SELECT count(*) FROM subscription_requests WHERE token IS NOT NULL AND asked > ?"
            written = on.execute(f"{lately} AND folded = ?", (now - PAUSE, folded)).fetchone()[0]
            if banned or written or on.execute(lately, (now - PAUSE,)).fetchone()[0] >= MOST:
                return None
            on.execute("DELETE FROM subscription_requests WHERE folded = ? AND token IS NULL", (folded,))
            return on.execute(
                "INSERT INTO subscription_requests (folded, address, every, wants, asked) "
                "VALUES (?, ?, ?, ?, ?)",
                (folded, address, every, wants.to_json(), now),
            ).lastrowid

    def waiting(self, now: float) -> list[int]:
        """Requests of the last day to which no mail went out yet, because the server was away."""
        sql = "SELECT id FROM subscription_requests WHERE token IS NULL AND asked > ?"
        return [row["id"] for row in self._database.rows(sql, (now - DAY,))]

    def claim(self, request: int, now: float) -> tuple[Request, str] | None:
        """A request with a new token to mail, whose hash alone is kept; None if another process has it."""
        token = secrets.token_urlsafe(32)
        with self._database.write() as on:
            done = on.execute(
                "UPDATE subscription_requests SET token = ?, asked = ? WHERE id = ? AND token IS NULL",
                (_hashed(token), now, request),
            ).rowcount
        found = self.asked(token, now) if done else None
        return (found, token) if found else None

    def release(self, request: int) -> None:
        """The mail surely did not go out: let it be tried again."""
        with self._database.write() as on:
            on.execute("UPDATE subscription_requests SET token = NULL WHERE id = ?", (request,))

    def asked(self, token: str, now: float) -> Request | None:
        """What a link of a confirmation mail confirms; None once it is confirmed or too old."""
        rows = self._database.rows(
            "SELECT * FROM subscription_requests WHERE token = ? AND asked >= ? AND NOT done",
            (_hashed(token), now - HOLDS),
        )
        return _request(rows[0]) if rows else None

    def confirm(self, token: str, now: float) -> Subscriber | None:
        """Begin, or add to what they had; None where there is nothing to confirm (any more)."""
        with self._database.write() as on:
            row = on.execute(
                "UPDATE subscription_requests SET done = 1 "
                "WHERE token = ? AND asked >= ? AND NOT done RETURNING *",
                (_hashed(token), now - HOLDS),
            ).fetchone()
            if row is None:
                return None
            asked = _request(row)
            had = on.execute("SELECT * FROM subscribers WHERE folded = ?", (row["folded"],)).fetchone()
            wants = Wants.from_json(had["wants"]) | asked.wants if had else asked.wants
            on.execute(
                "INSERT INTO subscribers (folded, address, secret, every, wants, confirmed, since) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (folded) DO UPDATE SET "
                "every = excluded.every, wants = excluded.wants, refusals = 0, paused = 0",
                (
                    row["folded"],
                    asked.address,
                    secrets.token_urlsafe(32),
                    asked.every,
                    wants.to_json(),
                    now,
                    now - (DAY if asked.every == "daily" else 7 * DAY),  # the first mail has something in it
                ),
            )
            made = on.execute("SELECT * FROM subscribers WHERE folded = ?", (row["folded"],)).fetchone()
        return subscriber(made)

    def of_secret(self, secret: str) -> Subscriber | None:
        """Whose page it is."""
        rows = self._database.rows("SELECT * FROM subscribers WHERE secret = ?", (_text(secret),))
        return subscriber(rows[0]) if rows else None

    def change(self, secret: str, every: str, wants: Wants) -> Subscriber | None:
        """Choose anew, and try a paused address again; None where nobody has the secret."""
        check_choice("every", every, EVERY)
        with self._database.write() as on:
            on.execute(
                "UPDATE subscribers SET every = ?, wants = ?, refusals = 0, paused = 0 WHERE secret = ?",
                (every, wants.to_json(), _text(secret)),
            )
        return self.of_secret(secret)

    def end(self, secret: str, *, never: bool = False) -> bool:
        """Forget everything about a subscriber; whether there was one.

        Args:
            never: keep a hash of the address, so that nobody can have it written to again.
        """
        with self._database.write() as on:
            row = on.execute(
                "DELETE FROM subscribers WHERE secret = ? RETURNING folded, address", (_text(secret),)
            ).fetchone()
            if row is None:
                return False
            on.execute("DELETE FROM subscription_requests WHERE folded = ?", (row["folded"],))
            if never:
                on.execute("INSERT OR IGNORE INTO never_write VALUES (?)", (self._hash(row["address"]),))
        return True

    def allow(self, address: str) -> bool:
        """Forget that somebody never wants mail; whether they had said so."""
        with self._database.write() as on:
            gone = on.execute("DELETE FROM never_write WHERE hash = ?", (self._hash(mail_address(address)),))
        return gone.rowcount > 0

    def _banned(self, address: str) -> bool:
        return bool(self._database.rows("SELECT 1 FROM never_write WHERE hash = ?", (self._hash(address),)))

    def _hash(self, address: str) -> bytes:
        key = self._database.rows("SELECT value FROM never_write_key")[0]["value"]
        return hmac.digest(key, address.casefold().encode(), "sha256")


def subscriber(row: sqlite3.Row) -> Subscriber:
    wants = Wants.from_json(row["wants"])
    plain = {name: row[name] for name in ("id", "address", "secret", "every", "confirmed", "since", "looked")}
    return Subscriber(**plain, wants=wants, paused=bool(row["paused"]))


def _request(row: sqlite3.Row) -> Request:
    return Request(row["id"], row["address"], row["every"], Wants.from_json(row["wants"]))


def _hashed(token: str) -> str:
    return hashlib.sha256(_text(token).encode()).hexdigest()


def _text(token: str) -> str:
    """What comes in an address may hold halves of characters, which neither hashes nor SQLite take."""
    return token.encode(errors="replace").decode()
