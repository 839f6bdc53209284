"""Who may do what: one table, which docs/desk.md shows and the tests walk through."""

from __future__ import annotations

from typing import Literal

from fastapi import HTTPException, Request

from thalweg.desk.people import Person
from thalweg.desk.sessions import person_of

__all__ = ["Action", "demand", "may", "read_only"]

Action = Literal[
    "read",
    "subscribe",
    "vote",
    "comment",
    "edit their own comment",
    "delete their own comment",
    "remove another's comment",
    "invite",
    "change a role",
    "remove a person",
]
MEMBERS = frozenset({"member", "moderator", "owner"})
EVERYBODY = MEMBERS | {"reader"}
RIGHTS: dict[Action, frozenset[str]] = {
    "read": EVERYBODY,
    "subscribe": EVERYBODY,
    "vote": MEMBERS,
    "comment": MEMBERS,
    "edit their own comment": MEMBERS,
    "delete their own comment": MEMBERS,
    "remove another's comment": frozenset({"moderator", "owner"}),
    "invite": frozenset({"owner"}),
    "change a role": frozenset({"owner"}),
    "remove a person": frozenset({"owner"}),
}


def may(person: Person | None, action: Action) -> bool:
    """Whether somebody may do something; None is a reader, who is not signed in."""
    return (person.role if person else "reader") in RIGHTS[action]


def read_only(request: Request) -> HTTPException:
    """What to raise where something is to be kept and there is no database."""
    return HTTPException(403, f"this desk is read-only: {request.app.state.read_only}")


def demand(request: Request, action: Action) -> Person:
    """Who asks, if they may.

    Raises:
        HTTPException: 401 for a reader, 403 for somebody whose role does not allow it.
    """
    person = person_of(request)
    if person is None:
        if request.app.state.database is None:
            raise read_only(request)
        raise HTTPException(401, f"to {action}, sign in; who has no name here yet asks for an invitation")
    if not may(person, action):
        raise HTTPException(403, f"to {action} is not for a {person.role}")
    return person
