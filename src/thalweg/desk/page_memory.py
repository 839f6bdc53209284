"""Pages for readers who are not signed in are kept until anything in the desk's database changes.

Two hundred readers of the daily page are then served one rendering. Nothing is shown late: SQLite tells a
connection whether another one, of this process or not, has committed since (``PRAGMA data_version``).
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import re
import sqlite3
import time
from collections import OrderedDict
from dataclasses import dataclass

from starlette.datastructures import Headers, State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from thalweg.desk.database import Database
from thalweg.desk.sessions import COOKIE

__all__ = ["PageMemory"]

# What is the same for all readers; a page that turns out to hold a form, and so a token, is not kept.
SHARED = re.compile(r"/papers(/.*)?|/findings|/methods|/topics|/search")
KINDS = (b"text/html", b"image/svg+xml")
LASTS = 10.0  # seconds: "5 minutes ago" may be as late as that, and what trends
MOST, LARGEST = 100, 1 << 18  # pages that are kept, and bytes of one
SMALL = 1400  # bytes of one packet: what is shorter is not worth packing
Key = tuple[str, ...]


@dataclass(frozen=True)
class _Kept:
    """A page as it went out; ``change`` is what the database was at, ``until`` a moment of the clock."""

    headers: list[tuple[bytes, bytes]]
    body: bytes
    packed: bytes
    tag: bytes
    change: int
    until: float


class PageMemory:
    """Stands before the application; whoever asks for a page that is being made waits for that one.

    Args:
        state: of the application, for its database.
    """

    def __init__(self, app: ASGIApp, state: State) -> None:
        self.app = app
        self._state = state
        self._kept: OrderedDict[Key, _Kept] = OrderedDict()
        self._making: dict[tuple[Key, int], asyncio.Future[_Kept | None]] = {}
        self._watching: sqlite3.Connection | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        key = _key(scope)
        change = None if key is None else self._change()
        if key is None or change is None:
            await self.app(scope, receive, send)
            return
        found = self._kept.get(key)
        if found is None or found.change != change or found.until < time.monotonic():
            found = await self._made(key, change, scope, receive, send)
        if found is not None:
            await _give(found, Headers(scope=scope), send)

    def _change(self) -> int | None:
        """A number that differs after every commit; None where it cannot be known."""
        database: Database | None = self._state.database
        if database is None:
            return 0
        try:
            if self._watching is None:
                self._kept.clear()  # another connection counts anew
                self._watching = sqlite3.connect(database.path, timeout=0, check_same_thread=False)
            return self._watching.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            self._watching = None
            return None

    async def _made(self, key: Key, change: int, scope: Scope, receive: Receive, send: Send) -> _Kept | None:
        """The page, made here or by who asked first; None when it has been sent and is not to be kept."""
        first = self._making.get((key, change))
        if first is not None:
            found = await asyncio.shield(first)
            if found is None:
                await self.app(scope, receive, send)
            return found
        done = self._making[key, change] = asyncio.get_running_loop().create_future()
        kept, messages = None, []

        async def record(message: Message) -> None:
            if message["type"] in ("http.response.start", "http.response.body"):
                messages.append(message)
            else:
                await send(message)

        scope.setdefault("state", {})
        try:
            await self.app(scope, receive, record)
            kept = _page(messages, change) if "form_token" not in scope["state"] else None
            if kept is not None:
                self._kept[key] = kept
                self._kept.move_to_end(key)
                while len(self._kept) > MOST:
                    self._kept.popitem(last=False)
        finally:
            del self._making[key, change]
            done.set_result(kept)
        if kept is None:
            for message in messages:
                await send(message)
        return kept


def _key(scope: Scope) -> Key | None:
    """What makes pages differ between readers; None for what is no page, or not for everybody."""
    if scope["type"] != "http" or scope["method"] != "GET" or not SHARED.fullmatch(scope["path"]):
        return None
    headers = Headers(scope=scope)
    if COOKIE in headers.get("cookie", ""):
        return None
    query = scope["query_string"].decode("latin-1")
    return scope["scheme"], headers.get("host", ""), scope["path"], query, headers.get("hx-request", "")


def _page(messages: list[Message], change: int) -> _Kept | None:
    """What was answered, if it is a page that anybody may be given."""
    start, body = messages[0], b"".join(one.get("body", b"") for one in messages[1:])
    headers = {name.lower(): value for name, value in start["headers"]}
    if (
        start["status"] != 200
        or not headers.get(b"content-type", b"").startswith(KINDS)
        or b"set-cookie" in headers
        or b"no-store" in headers.get(b"cache-control", b"")
        or len(body) > LARGEST
    ):
        return None
    packed = gzip.compress(body, 5, mtime=0) if len(body) > SMALL else b""
    tag = b'W/"' + hashlib.sha256(body).hexdigest()[:32].encode() + b'"'
    kept = [(name, value) for name, value in headers.items() if name != b"content-length"]
    kept += [(b"etag", tag), (b"vary", b"Accept-Encoding, Cookie, HX-Request")]
    return _Kept(kept, body, packed, tag, change, time.monotonic() + LASTS)


async def _give(page: _Kept, asked: Headers, send: Send) -> None:
    status, body, headers = 200, page.body, list(page.headers)
    if page.tag.decode() in asked.get("if-none-match", ""):
        status, body = 304, b""
    else:
        if page.packed and "gzip" in asked.get("accept-encoding", ""):
            body = page.packed
            headers.append((b"content-encoding", b"gzip"))
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
