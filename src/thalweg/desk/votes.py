"""Upvotes: one a person a paper, given or taken back; on the disk before the answer says so."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import RedirectResponse, Response

from thalweg.desk.catalog_keys import follow_catalog
from thalweg.desk.database import Database
from thalweg.desk.limits import limit
from thalweg.desk.local_path import local_path
from thalweg.desk.paper_pages import paper_of
from thalweg.desk.people import Person
from thalweg.desk.rights import demand
from thalweg.desk.views import page

router = APIRouter(include_in_schema=False)
SCHEMA = (
    """
    CREATE TABLE votes (
        paper TEXT NOT NULL, person INTEGER NOT NULL REFERENCES people (id) ON DELETE CASCADE,
        at REAL NOT NULL, PRIMARY KEY (paper, person)
    ) WITHOUT ROWID;
    CREATE INDEX votes_at ON votes (at, paper);
    CREATE INDEX votes_person ON votes (person);
    """,
)


def prepare(database: Database) -> None:
    """Bring the table; what is in it follows papers into the catalog."""
    database.ensure("votes", SCHEMA)
    follow_catalog(database, "votes")


def set_vote(database: Database, paper: str, person: Person, up: bool) -> None:
    """Give or take back an upvote; doing either twice is doing it once."""
    with database.write() as on:
        if up:
            on.execute("INSERT OR IGNORE INTO votes VALUES (?, ?, ?)", (paper, person.id, time.time()))
        else:
            on.execute("DELETE FROM votes WHERE paper = ? AND person = ?", (paper, person.id))


@router.post("/papers/{name}/vote")
def vote(
    request: Request, name: str, up: Annotated[bool, Form()], next: Annotated[str, Form(max_length=2000)] = ""
) -> Response:
    """``up`` says which way, so that a second click or a repeated request changes nothing more."""
    person = demand(request, "vote")
    limit(request, "vote", account=person.name)
    paper = paper_of(request, name)
    set_vote(request.app.state.database, paper.key, person, up)
    if "hx-request" in request.headers:
        return page(request, "vote.html", paper=paper, next=next)
    return RedirectResponse(local_path(next, f"/papers/{paper.key}"), 303)
