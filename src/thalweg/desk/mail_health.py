"""Whether mail can go out, for the health page."""

from __future__ import annotations

from collections.abc import Iterator

from starlette.datastructures import State

from thalweg.desk.check import Check
from thalweg.desk.settings import mail_settings


def checks(state: State) -> Iterator[Check]:
    """The settings as they are now, and the last digest."""
    if state.database is None:
        return
    try:
        settings = mail_settings(state.database.folder, public_url=state.public or "")
    except (OSError, ValueError) as error:
        yield Check("mail", "bad", f"cannot be sent: {error}")
        return
    if settings is None:
        yield Check("mail", "good", "no server is configured: feeds are there, nobody can subscribe by mail")
        return
    last = state.database.rows("SELECT max(began) AS last FROM mails WHERE state = 'sent'")[0]["last"]
    what = "a server is configured; the last digest left" if last else "a server is configured; no digest yet"
    yield Check("mail", "good", what, last)
