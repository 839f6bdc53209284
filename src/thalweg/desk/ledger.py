"""Which papers went to whom: written before a message leaves, so that a crash at no moment sends one twice.

A message is ``prepared`` (surely not sent), ``sending`` (the server may have it) and then ``sent``. One that
a dead process left behind is taken back if it was prepared; if it was sending it counts as sent, becomes
``unknown`` and is reported: nobody gets a paper twice, and the owner knows which message may be missing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from thalweg.desk.database import Database
from thalweg.desk.subscriptions import Subscriber

__all__ = ["Ledger", "Mail"]

REFUSALS = 3  # in a row, and an address gets no more
SCHEMA = (
    """
    CREATE TABLE mails (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        subscriber INTEGER NOT NULL REFERENCES subscribers (id) ON DELETE CASCADE,
        period TEXT NOT NULL, message TEXT NOT NULL UNIQUE, state TEXT NOT NULL, began REAL NOT NULL,
        UNIQUE (subscriber, period)
    );
    CREATE TABLE mailed (
        subscriber INTEGER NOT NULL REFERENCES subscribers (id) ON DELETE CASCADE,
        paper TEXT NOT NULL, place INTEGER NOT NULL,
        mail INTEGER NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
        PRIMARY KEY (subscriber, paper)
    ) WITHOUT ROWID;
    CREATE INDEX mailed_by_mail ON mailed (mail, place);
    """,
)


@dataclass(frozen=True)
class Mail:
    """A message in the ledger; ``began`` in seconds of 1970 is when its papers were looked up."""

    id: int
    subscriber: int
    period: str
    message: str
    state: str
    began: float


def prepare(database: Database) -> None:
    """Bring the tables."""
    database.ensure("ledger", SCHEMA)


class Ledger:
    """A paper is known by its arXiv id without a version, or by its key: versions are the same paper."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def had(self, subscriber: int) -> frozenset[str]:
        """Ids of the papers that somebody was sent."""
        rows = self._database.rows("SELECT paper FROM mailed WHERE subscriber = ?", (subscriber,))
        return frozenset(row["paper"] for row in rows)

    def done(self, subscriber: int, period: str) -> bool:
        """Whether there is a message of this day or week already."""
        sql = "SELECT 1 FROM mails WHERE subscriber = ? AND period = ?"
        return bool(self._database.rows(sql, (subscriber, period)))

    def mail(self, subscriber: int, mail: int) -> list[str]:
        """Ids of all papers of one message, also of those that it only counted, in its order."""
        sql = "SELECT paper FROM mailed WHERE subscriber = ? AND mail = ? ORDER BY place"
        return [row["paper"] for row in self._database.rows(sql, (subscriber, mail))]

    def begin(
        self, subscriber: int, period: str, message: str, papers: Sequence[str], now: float
    ) -> Mail | None:
        """Prepare a message; None where the subscriber is gone, or has this period or one of the papers."""
        try:
            with self._database.write() as on:
                made = on.execute(
                    "INSERT INTO mails (subscriber, period, message, began, state) "
                    "VALUES (?, ?, ?, ?, 'prepared')",
                    (subscriber, period, message, now),
                ).lastrowid
                on.executemany(
                    "INSERT INTO mailed VALUES (?, ?, ?, ?)",
                    [(subscriber, paper, place, made) for place, paper in enumerate(papers)],
                )
        except sqlite3.IntegrityError:
            return None
        assert made is not None
        return Mail(made, subscriber, period, message, "prepared", now)

    def sending(self, mail: Mail) -> bool:
        """From now on it may have been sent; False where it was withdrawn, since the subscriber is gone."""
        with self._database.write() as on:
            changed = on.execute(
                "UPDATE mails SET state = 'sending' WHERE id = ? AND state = 'prepared'", (mail.id,)
            )
        return changed.rowcount == 1

    def sent(self, mail: Mail, state: str = "sent") -> None:
        """The server has it, or (``"unknown"``) may have it; what is older than it is not new any more."""
        with self._database.write() as on:
            on.execute("UPDATE mails SET state = ? WHERE id = ?", (state, mail.id))
            on.execute(
                "UPDATE subscribers SET since = max(since, ?), refusals = 0 WHERE id = ?",
                (mail.began, mail.subscriber),
            )

    def release(self, mail: Mail) -> None:
        """It surely was not sent: its papers are new as before."""
        with self._database.write() as on:
            on.execute("DELETE FROM mails WHERE id = ?", (mail.id,))

    def refused(self, mail: Mail) -> bool:
        """The server takes no mail for the address; whether that was once too often, and it is paused."""
        with self._database.write() as on:
            on.execute("DELETE FROM mails WHERE id = ?", (mail.id,))
            row = on.execute(
                "UPDATE subscribers SET refusals = refusals + 1, paused = refusals + 1 >= ? WHERE id = ? "
                "RETURNING paused",
                (REFUSALS, mail.subscriber),
            ).fetchone()
        return bool(row and row["paused"])

    def nothing(self, looked: Sequence[tuple[Subscriber, str]], now: float) -> None:
        """There was nothing new for these in a period; a week is looked at once, a day until there is."""
        with self._database.write() as on:
            on.executemany(
                "UPDATE subscribers SET since = max(since, ?), looked = ? WHERE id = ?",
                [(now, period if one.every == "weekly" else "", one.id) for one, period in looked],
            )

    def recover(self) -> list[Mail]:
        """Settle what a dead process left; gives the messages of which nobody knows whether they were sent.

        To be called while no other process sends.
        """
        fields = "id, subscriber, period, message, state, began"
        sql = f"SELECT {fields} FROM mails WHERE state IN ('prepared', 'sending')"
        left = [Mail(*row) for row in self._database.rows(sql)]
        for one in left:
            if one.state == "prepared":
                self.release(one)
            else:
                self.sent(one, "unknown")
        return [one for one in left if one.state == "sending"]
