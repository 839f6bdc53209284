"""Error pages: what went wrong in words, never what was sent."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from thalweg.desk.guard import HEADERS, PRIVATE
from thalweg.desk.views import page


def answer_errors(app: FastAPI) -> None:
    """Answer every error in the desk's own way: JSON under ``/api/``, a page elsewhere."""
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(ValueError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(sqlite3.Error, _unstored)
    app.add_exception_handler(Exception, _broken)


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, str(error.detail), error.headers)


async def _refused(request: Request, error: Exception) -> Response:
    """What the asker can put right: a date that is none, a room that is not there."""
    return _answer(request, 400, str(error))


async def _malformed(request: Request, error: Exception) -> Response:
    """A field that is missing, too long or of the wrong kind; not repeated, for it may be a password."""
    assert isinstance(error, RequestValidationError)
    said = "; ".join(f"{_argument(one['loc'])}: {one['msg']}" for one in error.errors())
    return _answer(request, 422, said)


def _argument(place: Sequence[str | int]) -> str:
    """The name of an argument, also where it is one of several values that was wrong."""
    return str(next((one for one in reversed(place) if isinstance(one, str)), place[-1]))


async def _unstored(request: Request, error: Exception) -> Response:
    """A full disk, a file that is locked or broken: readers read on."""
    request.app.state.problems.report("database", f"{_asked(request)}: {error}")
    return _answer(request, 503, "the desk's data cannot be read or written just now: nothing was changed")


async def _broken(request: Request, error: Exception) -> Response:
    """A mistake of ours; the server writes its trace to the terminal."""
    request.app.state.problems.report("pages", f"{_asked(request)}: {type(error).__name__}")
    # This answer goes round everything that adds headers.
    return _answer(
        request, 500, "the desk made a mistake; the page /health says more", {**HEADERS, **PRIVATE}
    )


def _asked(request: Request) -> str:
    """Method and route; the address itself may hold a secret, and problems are shown to readers."""
    return f"{request.method} {getattr(request.scope.get('route'), 'path', 'a page')}"


def _answer(request: Request, code: int, why: str, headers: Mapping[str, str] | None = None) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": why}, code, dict(headers or {}))
    answer = page(request, "error.html", code=code, why=why, status_code=code)
    answer.headers.update(headers or {})
    return answer
