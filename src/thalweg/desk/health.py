"""The health page: what works, what does not, and what went wrong and was survived."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import State
from starlette.responses import Response

from thalweg._core.discover import modules
from thalweg.desk.api_shapes import HealthShape
from thalweg.desk.check import Check
from thalweg.desk.database import Database
from thalweg.desk.evidence_rows import damage, measured
from thalweg.desk.views import page
from thalweg.papers.entry import faults, load

router = APIRouter()
SCHEMA = ("CREATE TABLE health (one INTEGER PRIMARY KEY CHECK (one = 1), written REAL NOT NULL);",)
LOW, EMPTY = 1 << 30, 1 << 26  # bytes free: below the first it is said, below the second it is bad
READ_WHOLE = 1 << 26  # bytes: a larger database is not read from end to end for a page
READ_SCHEMA = "SELECT 'ok' FROM (SELECT count(*) FROM sqlite_schema)"
LASTS = 2.0  # seconds for which an answer stands, so that asking costs little however often it is done
WORST = {"good": 0, "warn": 1, "bad": 2}
LOG = logging.getLogger("thalweg.desk")


def prepare(database: Database) -> None:
    database.ensure("health", SCHEMA)


@router.get("/health", include_in_schema=False)
def health_page(request: Request) -> Response:
    found, problems = _look(request.app.state), request.app.state.problems.all()
    return page(request, "health.html", checks=found, problems=problems, state=_worst(found))


@router.get("/api/health", tags=["health"], response_model=HealthShape)
def health(request: Request) -> dict[str, Any]:
    """``state`` is good, warn or bad: the worst of the checks. Times are seconds of 1970."""
    found = _look(request.app.state)
    return {
        "state": _worst(found),
        "checks": [vars(one) for one in found],
        "problems": [vars(one) for one in request.app.state.problems.all()],
    }


def _worst(found: list[Check]) -> str:
    return max((one.state for one in found), key=WORST.__getitem__)


def _look(state: State) -> list[Check]:
    """Every check of the room, the worst first; one that fails is itself bad, never a page that fails."""
    now = time.monotonic()
    found: list[Check]
    at, found = getattr(state, "looked", (-LASTS, []))
    if now - at >= LASTS:
        found = []
        for module in modules("thalweg.desk"):
            if not callable(ask := getattr(module, "checks", None)):
                continue
            name = module.__name__.rpartition(".")[2].replace("_", " ")
            try:
                found += ask(state)
            except (sqlite3.Error, OSError) as error:
                found.append(Check(name, "bad", f"cannot be asked: {error}"))
            except Exception as error:
                LOG.exception("the check of %s failed", name)
                found.append(Check(name, "bad", f"cannot be asked: {type(error).__name__}"))
        found.sort(key=lambda one: -WORST[one.state])
        state.looked = now, found
    return list(found)


def checks(state: State) -> Iterator[Check]:
    """What every desk has: a database, a disk, a catalog, a run store."""
    yield _database(state)
    if state.database is not None:
        yield _disk(state.database)
    yield _catalog()
    if state.store is not None:
        yield _store(state)


def _database(state: State) -> Check:
    database = state.database
    if database is None:
        refused = any(one.source == "database" for one in state.problems.all())
        what = "cannot be used (see below)" if refused else "none was given"
        return Check(
            "database", "bad" if refused else "warn", f"{what}: the desk shows the catalog, read-only"
        )
    try:
        if (said := _damage(database)) != "ok":
            return Check("database", "bad", f"is damaged: {said}")
        with database.write() as on:
            on.execute("INSERT OR REPLACE INTO health VALUES (1, ?)", (time.time(),))
    except (sqlite3.Error, OSError) as error:
        return Check("database", "bad", f"cannot be written: {error}")
    return Check("database", "good", f"can be written, {database.path.stat().st_size / 1e6:,.1f} MB")


def _damage(database: Database) -> str:
    """What SQLite finds wrong in the file, or ``ok``.

    Asked on a connection of its own: those that are kept answer from the pages that they remember.
    """
    with closing(sqlite3.connect(f"{database.path.absolute().as_uri()}?mode=ro", uri=True)) as fresh:
        whole = database.path.stat().st_size <= READ_WHOLE
        return str(fresh.execute("PRAGMA quick_check(1)" if whole else READ_SCHEMA).fetchone()[0])


def _disk(database: Database) -> Check:
    free = shutil.disk_usage(database.folder).free
    what = f"{free / 1e9:,.1f} GB free" if free >= 1e9 else f"{free / 1e6:,.1f} MB free"
    if free < EMPTY:
        return Check("disk", "bad", f"{what}: votes, comments and imports will soon be refused")
    return Check("disk", "warn" if free < LOW else "good", what)


def _catalog() -> Check:
    entries = load()
    damaged = [*faults(), *(said for entry in entries if (said := damage(entry)))]
    if damaged:
        return Check("catalog", "bad", f"{len(entries)} papers; {'; '.join(damaged)}")
    done = sum(measured(entry) is not None for entry in entries)
    return Check("catalog", "good", f"{len(entries)} papers, {done} of them measured")


def _store(state: State) -> Check:
    from thalweg.watch.store import RunStore

    if not state.store.is_file():
        return Check("run store", "good", "no run has been stored yet")
    try:
        with RunStore(state.store) as store:
            runs = store.runs()
    except (sqlite3.Error, OSError, ValueError) as error:
        return Check("run store", "bad", f"{state.store.name} cannot be read: {error}")
    last = max((one.seen for one in runs), default=None)
    count = "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    heard = ", last heard of" if last else ""
    return Check("run store", "good", f"{count} in {state.store.name}{heard}", last)
