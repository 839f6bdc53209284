"""A request that changes something must come from a page of this desk (cross-site request forgery).

Every route is checked unless it says why not (:func:`unchecked`): the application depends on :func:`checked`.
A form needs one line, in any template that :func:`thalweg.desk.views.page` renders::

    <input type="hidden" name="csrf" value="{{ csrf() }}">

htmx sends the fields of a form, so that the same line serves it; a script without a form sends the header
``X-CSRF-Token``. A token holds for the session of who is signed in, else for a cookie of the browser.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from typing import TypeVar

from fastapi import HTTPException, Request
from starlette.responses import Response

from thalweg.desk.database import Database
from thalweg.desk.sessions import cookie_name, session_of, set_cookie

__all__ = ["checked", "unchecked"]

FIELD, HEADER = "csrf", "X-CSRF-Token"
COOKIE = "thalweg_form"
LASTS = 86400 * 30
SAFE = ("GET", "HEAD", "OPTIONS")
SCHEMA = ("CREATE TABLE form_secret (only INTEGER PRIMARY KEY CHECK (only = 1), value BLOB NOT NULL);",)
Endpoint = TypeVar("Endpoint", bound=Callable)


def prepare(database: Database) -> None:
    """Bring the table of the secret that signs tokens, so that they outlive a restart."""
    database.ensure("csrf", SCHEMA)
    with database.write() as on:
        on.execute("INSERT OR IGNORE INTO form_secret VALUES (1, ?)", (secrets.token_bytes(32),))


def unchecked(why: str) -> Callable[[Endpoint], Endpoint]:
    """Mark an endpoint that needs no token, say one-click unsubscribing, whose address is the secret."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.unchecked = why  # type: ignore[attr-defined]
        return endpoint

    return mark


def token(request: Request) -> str:
    """The token for all forms on the page that answers ``request``; another page has another, and all hold.

    :func:`keep` must see the answer, which ``page`` does: a browser that is not signed in gets a cookie.
    """
    if not hasattr(request.state, "form_token"):
        salt = secrets.token_hex(8)
        request.state.form_token = f"{salt}.{_signed(request, salt, _bound(request, new=True))}"
    return request.state.form_token


def keep(request: Request, response: Response) -> None:
    """Give the browser the cookie that a token on this answer is bound to."""
    if hasattr(request.state, "form_cookie"):
        set_cookie(request, response, COOKIE, request.state.form_cookie, LASTS)


async def checked(request: Request) -> None:
    """Refuse a request that would change something unless a page of this desk sent it.

    Raises:
        HTTPException: 403, it comes from another site, or its token is missing or not theirs.
    """
    if request.method in SAFE or hasattr(request.scope.get("endpoint"), "unchecked"):
        return
    if not _from_here(request):
        raise HTTPException(403, "this request comes from another site")
    given = request.headers.get(HEADER) or (await request.form()).get(FIELD)
    if not isinstance(given, str) or not _holds(request, given):
        raise HTTPException(403, "this form has expired: go back, load its page again and send it once more")


def _from_here(request: Request) -> bool:
    """What browsers say of where a request comes from; other clients say nothing and need the token alone."""
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = request.headers.get("origin")
    if origin is None:
        return True
    public = getattr(request.app.state, "public", None) or ""
    # The scheme is not compared: behind a proxy the desk itself is asked by http.
    here = (request.headers.get("host", ""), public.partition("://")[2])
    return origin.partition("://")[2] in [one for one in here if one]


def _holds(request: Request, given: str) -> bool:
    salt, _, signature = given.partition(".")
    bound = _bound(request, new=False)
    return bool(bound) and hmac.compare_digest(signature.encode(), _signed(request, salt, bound).encode())


def _bound(request: Request, *, new: bool) -> str:
    """What a token holds for: the session, else the cookie that a browser brought or is about to get."""
    if session := session_of(request):
        return f"session {session.id}"
    brought = request.cookies.get(cookie_name(request, COOKIE), "")
    if re.fullmatch(r"[0-9a-f]{32}", brought):
        return f"cookie {brought}"
    if not new:
        return ""
    if not hasattr(request.state, "form_cookie"):
        request.state.form_cookie = secrets.token_hex(16)
    return f"cookie {request.state.form_cookie}"


def _signed(request: Request, salt: str, bound: str) -> str:
    text = f"{salt} {bound}".encode(errors="surrogatepass")
    return hmac.new(_secret(request), text, hashlib.sha256).hexdigest()


def _secret(request: Request) -> bytes:
    state = request.app.state
    if not hasattr(state, "form_secret"):
        rows = state.database.rows("SELECT value FROM form_secret") if state.database else []
        state.form_secret = rows[0]["value"] if rows else secrets.token_bytes(32)
    return state.form_secret
