"""The desk as a web application: pages, API and run pages behind one set of headers and error pages."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from thalweg._core.discover import modules
from thalweg.desk.api_shapes import FAILURES
from thalweg.desk.csrf import checked
from thalweg.desk.database import Database
from thalweg.desk.error_pages import answer_errors
from thalweg.desk.guard import Guard
from thalweg.desk.head_requests import HeadRequests
from thalweg.desk.library import Library
from thalweg.desk.limits import Limits
from thalweg.desk.page_memory import PageMemory
from thalweg.desk.problems import Problems
from thalweg.desk.run_lookout import Lookout
from thalweg.desk.run_source import RunSource
from thalweg.desk.shelf import Shelf

__all__ = ["create_app"]

LOG = logging.getLogger("thalweg.desk")
HERE = Path(__file__).parent
# The interactive documentation of the API loads its scripts from elsewhere; the plain schema stays.
OPENAPI = "/api/openapi.json"


def create_app(
    store: str | Path | None = None,
    *,
    folder: str | Path | None = None,
    public: str | None = None,
    hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The desk over the built-in catalog, over the runs of one run store, and over the desk's own data.

    Every file of this room that has a ``router`` adds its pages by being there; one that has a
    ``prepare(database)`` brings its tables.

    Args:
        store: a run store, which need not exist yet; None for no run pages.
        folder: the desk's data: imported papers, people, subscriptions; None serves the catalog, read-only.
        public: the address under which people reach the desk, such as ``https://desk.example``, for links.
        hosts: names by which the desk may be asked, so that no other site's name leads here; None allows all.
    """
    app = FastAPI(
        title="thalweg desk",
        openapi_url=OPENAPI,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(checked)],
        responses=FAILURES,
    )
    # Each form that is broken on its way would fill the log.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    app.state.public = public.rstrip("/") if public else None
    app.state.limits = Limits()
    app.state.database, why = _opened(folder)
    app.state.problems = Problems(app.state.database)
    app.state.read_only = why or "it was started without a folder for its data"
    if why:
        app.state.problems.report("database", f"the desk is read-only: {why}, in {folder}")
    database = app.state.database
    app.state.shelf = Shelf(None if database is None else Library(database), app.state.problems)
    app.state.catalog = Shelf()
    app.state.reported = {}
    app.state.store = None if store is None else Path(store)
    app.state.runs = RunSource(app.state.store, app.state.problems)
    app.state.lookout = Lookout(app.state.runs)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    for one in modules("thalweg.desk"):
        if isinstance(router := getattr(one, "router", None), APIRouter):
            app.include_router(router)
    answer_errors(app)
    app.add_middleware(PageMemory, state=app.state)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(Guard)
    app.add_middleware(HeadRequests)
    return app


def _opened(folder: str | Path | None) -> tuple[Database | None, str]:
    """The database, or why it cannot be used: the catalog is served without it."""
    if folder is None:
        return None, ""
    try:
        database = Database(folder)
        for one in modules("thalweg.desk"):
            if callable(prepare := getattr(one, "prepare", None)):
                prepare(database)
        return database, ""
    except Exception as error:  # whatever is wrong with the data, papers can be read
        if not isinstance(error, (OSError, ValueError, sqlite3.Error)):
            LOG.exception("the data in %s", folder)
        said = getattr(error, "strerror", None) or str(error).replace(f"{Path(folder)}/", "")
        return None, f"its data cannot be used ({said})"
