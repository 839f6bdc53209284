"""Who is signed in: a random token in a cookie, of which the desk keeps only a hash."""

from __future__ import annotations

import secrets
import sqlite3
import time
from dataclasses import dataclass

from fastapi import Request
from starlette.responses import Response

from thalweg.desk.database import Database
from thalweg.desk.people import Person, hashed

__all__ = ["Session"]

COOKIE = "thalweg_session"
LASTS = 30 * 86400  # seconds, whatever happens in them


@dataclass(frozen=True)
class Session:
    """One sign-in: whose, since when (seconds of 1970), and the browser's own name for itself."""

    id: int
    person: Person
    since: float
    agent: str


def secure(request: Request) -> bool:
    """Whether the asker came by https, itself or through the proxy of the desk's public address."""
    public = getattr(request.app.state, "public", None) or ""
    return request.url.scheme == "https" or public.startswith("https://")


def cookie_name(request: Request, name: str) -> str:
    """Over https, a prefix by which browsers refuse the cookie from any other host or over plain http."""
    return f"__Host-{name}" if secure(request) else name


def set_cookie(request: Request, response: Response, name: str, value: str, seconds: int) -> None:
    """A cookie that scripts cannot read and that forms on other sites do not send; 0 seconds take it away."""
    response.set_cookie(
        cookie_name(request, name),
        value,
        max_age=seconds,
        path="/",
        secure=secure(request),
        httponly=True,
        samesite="lax",
    )


def start(request: Request, response: Response, person: Person) -> None:
    """Sign somebody in under a new token; whatever the browser brought is ended, not taken over."""
    database, token, now = request.app.state.database, secrets.token_urlsafe(32), time.time()
    agent = request.headers.get("user-agent", "")[:200]
    with database.write() as on:
        on.execute("DELETE FROM sessions WHERE expires < ? OR hash = ?", (now, hashed(_brought(request))))
        on.execute(
            "INSERT INTO sessions (hash, person, since, expires, agent) VALUES (?, ?, ?, ?, ?)",
            (hashed(token), person.id, now, now + LASTS, agent),
        )
    set_cookie(request, response, COOKIE, token, LASTS)


def session_of(request: Request) -> Session | None:
    """The session that a request belongs to, looked up once a request."""
    state = request.state
    if not hasattr(state, "session"):
        try:
            state.session = _found(request.app.state.database, _brought(request))
        except sqlite3.Error as error:
            # Who cannot be recognised can still read.
            state.session = None
            request.app.state.problems.report("database", f"people cannot be read: {error}")
    return state.session


def person_of(request: Request) -> Person | None:
    """Who asks, or None for a reader."""
    session = session_of(request)
    return session.person if session else None


def end(request: Request, response: Response, *, everywhere: bool = False) -> None:
    """Sign out here, or everywhere."""
    session = session_of(request)
    if session is not None:
        end_sessions(request.app.state.database, session.person, None if everywhere else session.id)
    set_cookie(request, response, COOKIE, "", 0)


def end_sessions(database: Database, person: Person, session: int | None = None) -> None:
    """End one session of somebody, or all of them."""
    with database.write() as on:
        on.execute("DELETE FROM sessions WHERE person = ? AND id = ifnull(?, id)", (person.id, session))


def sessions_of(database: Database, person: Person) -> list[Session]:
    """Where somebody is signed in, the latest first."""
    rows = database.rows(
        "SELECT id, since, agent FROM sessions WHERE person = ? AND expires > ? ORDER BY since DESC, id DESC",
        (person.id, time.time()),
    )
    return [Session(row["id"], person, row["since"], row["agent"]) for row in rows]


def _brought(request: Request) -> str:
    return request.cookies.get(cookie_name(request, COOKIE), "")


def _found(database: Database | None, token: str) -> Session | None:
    if database is None or not token:
        return None
    rows = database.rows(
        "SELECT sessions.id, sessions.since, agent, people.id AS person, name, role, people.since AS joined "
        "FROM sessions JOIN people ON people.id = sessions.person WHERE hash = ? AND expires > ?",
        (hashed(token), time.time()),
    )
    if not rows:
        return None
    row = rows[0]
    return Session(
        row["id"], Person(row["person"], row["name"], row["role"], row["joined"]), row["since"], row["agent"]
    )
