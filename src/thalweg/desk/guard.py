"""What every answer carries, and the size that no request may have."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

from fastapi import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Guard"]

HEADERS = {
    # Nothing from elsewhere, no inline script, nobody may frame a page.
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    # Not "no-referrer": with it, browsers hide from us that a form is our own.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
# What a page shows depends on who is signed in, so that nobody may keep it for others.
PRIVATE = {"cache-control": "private, no-cache"}
LARGEST = 1 << 18  # bytes of a request: forms only, and the longest is a comment


class Guard:
    """Around everything else, so that errors and files carry the headers as well."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        carried = HEADERS if scope["path"].startswith("/static/") else {**HEADERS, **PRIVATE}
        got = 0

        async def measured() -> MutableMapping[str, Any]:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > LARGEST:
                raise HTTPException(413, f"a request may have at most {LARGEST} bytes")
            return message

        async def carrying(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                have = {name.lower() for name, _ in message["headers"]}
                new = [(name.encode(), value.encode()) for name, value in carried.items()]
                message["headers"] = [*message["headers"], *(one for one in new if one[0] not in have)]
            await send(message)

        await self.app(scope, measured, carrying)
