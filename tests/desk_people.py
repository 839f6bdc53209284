"""Browsers for tests of the desk: a reader's, and those of people who are signed in."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from functools import cache

from fastapi.testclient import TestClient

from thalweg.desk.passwords import hash_password
from thalweg.desk.people import Person, hashed, named

PASSWORD = "correct horse battery"


@cache
def _hash() -> str:
    return hash_password(PASSWORD)


def person(app, name: str, role: str = "member") -> Person:
    """Somebody with ``PASSWORD``, without the way over an invitation."""
    with app.state.database.write() as on:
        on.execute(
            "INSERT INTO people (name, folded, role, password, since) VALUES (?, ?, ?, ?, ?)",
            (name, name.casefold(), role, _hash(), time.time()),
        )
    return named(app.state.database, name)


def browser(app, **more) -> TestClient:
    """A reader's browser; it does not follow redirections, so that tests see them."""
    return TestClient(app, raise_server_exceptions=False, follow_redirects=False, **more)


def carry(client: TestClient, token: str) -> None:
    """Put a session into a browser, however its owner came by it."""
    client.cookies.set("thalweg_session", token, domain="testserver.local")


def signed_in(app, name: str, role: str = "member") -> TestClient:
    """The browser of somebody new who is signed in."""
    someone, token, now = person(app, name, role), secrets.token_urlsafe(32), time.time()
    with app.state.database.write() as on:
        on.execute(
            "INSERT INTO sessions (hash, person, since, expires, agent) VALUES (?, ?, ?, ?, 'test')",
            (hashed(token), someone.id, now, now + 30 * 86400),
        )
    client = browser(app)
    carry(client, token)
    client.person = someone
    return client


def form_token(client: TestClient) -> str:
    """The token of a form that this browser gets."""
    for page in ("/account", "/people/sign-in"):
        if found := re.search(r'name="csrf" value="([^"]+)"', client.get(page).text):
            return found[1]
    raise AssertionError("no page has a form")


def send(client: TestClient, address: str, headers: dict | None = None, /, **fields):
    """Send a form as a browser does that got it from the desk."""
    return client.post(address, data={"csrf": form_token(client), **fields}, headers=headers)


def asked(app, path: str) -> tuple[int, str]:
    """The answer to exactly this path, which a client would tidy up: its code and text."""
    said = []
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
    }
    scope |= {"path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
    scope |= {"headers": [(b"host", b"testserver")], "client": ("1.2.3.4", 5), "server": ("testserver", 80)}

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        said.append(message)

    asyncio.run(app(scope, receive, send))
    body = b"".join(one.get("body", b"") for one in said)
    return said[0]["status"], body.decode(errors="replace")
