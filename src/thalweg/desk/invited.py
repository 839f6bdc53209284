"""Invitations that nobody has used yet: who was invited until when, and taking one back."""

from __future__ import annotations

import time

from thalweg.desk.database import Database
from thalweg.desk.people import Invitation, checked_name

__all__ = ["open_invitations", "withdraw"]


def open_invitations(database: Database) -> list[Invitation]:
    """All that still hold, by name; the links themselves are kept nowhere."""
    sql = "SELECT name, role, person, expires FROM invitations WHERE expires > ? ORDER BY folded"
    return [Invitation(*row) for row in database.rows(sql, (time.time(),))]


def withdraw(database: Database, name: str) -> bool:
    """Make the link for a name lead nowhere; whether there was one that held.

    Raises:
        ValueError: that is no name.
    """
    with database.write() as on:
        gone = on.execute(
            "DELETE FROM invitations WHERE folded = ? RETURNING expires", (checked_name(name).casefold(),)
        ).fetchall()
    return any(row["expires"] > time.time() for row in gone)
