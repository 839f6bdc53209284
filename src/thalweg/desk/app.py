"""The desk as a web application: pages, API and run pages behind one set of headers and error pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import Response

from thalweg.desk import api, feeds, paper_pages, run_pages
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


def create_app(store: str | Path | None = None) -> FastAPI:
    """The desk over the built-in catalog, and over the runs of one run store.

    Args:
        store: a run store, which need not exist yet; None for no run pages.
    """
    app = FastAPI(title="thalweg desk", openapi_url=OPENAPI, docs_url=None, redoc_url=None)
    app.state.shelf = Shelf()
    app.state.store = None if store is None else Path(store)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for one in (api, feeds, paper_pages, run_pages):
        app.include_router(one.router)
    app.add_exception_handler(HTTPException, _failed)
    app.add_exception_handler(ValueError, _refused)
    app.middleware("http")(_with_headers)
    return app


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
