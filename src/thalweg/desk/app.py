"""The desk as a web application: pages, API and run pages behind one set of headers and error pages."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import Response

from thalweg._core.discover import modules
from thalweg.desk.database import Database
from thalweg.desk.problems import Problems
from thalweg.desk.shelf import Shelf
from thalweg.desk.views import page

__all__ = ["create_app"]

HERE = Path(__file__).parent
HEADERS = {
    # Nothing from elsewhere, no inline script, nobody may frame a page.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
}
# The interactive documentation of the API loads its scripts from elsewhere; the plain schema stays.
OPENAPI = "/api/openapi.json"


def create_app(store: str | Path | None = None, *, folder: str | Path | None = None) -> FastAPI:
    """The desk over the built-in catalog, over the runs of one run store, and over the desk's own data.

    Every file of this room that has a ``router`` adds its pages by being there.

    Args:
        store: a run store, which need not exist yet; None for no run pages.
        folder: the desk's data: imported papers, people, subscriptions; None serves the catalog, read-only.
    """
    app = FastAPI(title="thalweg desk", openapi_url=OPENAPI, docs_url=None, redoc_url=None)
    app.state.database, why = _opened(folder)
    app.state.problems = Problems(app.state.database)
    if why:
        app.state.problems.report("database", why)
    app.state.shelf = Shelf()
    app.state.store = None if store is None else Path(store)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for one in modules("thalweg.desk"):
        if isinstance(router := getattr(one, "router", None), APIRouter):
            app.include_router(router)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(ValueError, _refused)
    app.middleware("http")(_with_headers)
    return app


def _opened(folder: str | Path | None) -> tuple[Database | None, str]:
    """The database, or why there is none: the catalog is served without it."""
    if folder is None:
        return None, ""
    try:
        return Database(folder), ""
    except (OSError, sqlite3.Error) as error:
        return None, f"{folder} cannot be used, so the desk is read-only: {error}"


async def _with_headers(request: Request, call_next: Any) -> Response:
    answer = await call_next(request)
    for name, value in HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


async def _failed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, error.status_code, str(error.detail))


async def _refused(request: Request, error: Exception) -> Response:
    """What the asker can put right: a date that is none, a room that is not there."""
    return _answer(request, 400, str(error))


def _answer(request: Request, code: int, why: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": why}, code)
    return page(request, "error.html", code=code, why=why, status_code=code)
