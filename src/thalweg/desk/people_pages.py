"""Signing in and out, joining by invitation, one's account, and the list of people for owners."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Path, Request
from starlette.responses import RedirectResponse, Response

from thalweg.desk.database import Database
from thalweg.desk.invited import open_invitations, withdraw
from thalweg.desk.limits import limit
from thalweg.desk.local_path import local_path
from thalweg.desk.people import (
    ROLES,
    NotOwner,
    Person,
    change_password,
    change_role,
    everyone,
    invitation,
    invite,
    join,
    recognise,
    remove,
)
from thalweg.desk.rights import demand, read_only
from thalweg.desk.sessions import end, end_sessions, person_of, session_of, sessions_of, start
from thalweg.desk.views import page

router = APIRouter(include_in_schema=False)
Short = Annotated[str, Form(max_length=200)]
Place = Annotated[str, Form(max_length=2000)]
Id = Annotated[int, Path(ge=1, le=2**53)]


def database_of(request: Request) -> Database:
    if request.app.state.database is None:
        raise read_only(request)
    return request.app.state.database


@router.get("/people/sign-in")
def sign_in(request: Request, next: str = "") -> Response:
    database_of(request)
    return page(request, "sign_in.html", next=local_path(next), name="", wrong="")


@router.post("/people/sign-in")
def signed_in(request: Request, name: Short = "", password: Short = "", next: Place = "") -> Response:
    database, next = database_of(request), local_path(next)
    limit(request, "sign in", account=name)
    person = recognise(database, name, password)
    if person is None:
        wrong = "nobody has this name and password"
        return page(request, "sign_in.html", next=next, name=name, wrong=wrong, status_code=401)
    answer = RedirectResponse(next, 303)
    start(request, answer, person)
    return answer


@router.post("/people/sign-out")
def sign_out(request: Request) -> Response:
    answer = RedirectResponse("/papers", 303)
    end(request, answer)
    return answer


@router.get("/join/{token}")
def invited(request: Request, token: str) -> Response:
    limit(request, "join")
    found = invitation(database_of(request), token)
    return page(
        request, "join.html", token=token, invitation=found, wrong="", status_code=200 if found else 404
    )


@router.post("/join/{token}")
def joined(request: Request, token: str, name: Short = "", password: Short = "") -> Response:
    database = database_of(request)
    limit(request, "join")
    try:
        person = join(database, token, name, password)
    except ValueError as error:
        found = invitation(database, token)
        about: dict[str, Any] = {"token": token, "invitation": found, "name": name, "wrong": str(error)}
        return page(request, "join.html", **about, status_code=422 if found else 404)
    answer = RedirectResponse("/account", 303)
    start(request, answer, person)
    return answer


@router.get("/account")
def account(request: Request) -> Response:
    person = person_of(request)
    if person is None:
        database_of(request)
        return RedirectResponse("/people/sign-in?next=/account", 303)
    return _account(request, person)


@router.post("/account/password")
def new_password(request: Request, password: Short = "", new: Short = "") -> Response:
    person = _signed_in(request)
    limit(request, "sign in", account=person.name)
    try:
        change_password(request.app.state.database, person, password, new)
    except ValueError as error:
        return _account(request, person, wrong=str(error), status_code=422)
    # Whoever had the old password is signed out everywhere; who changed it goes on under a new token.
    answer = RedirectResponse("/account", 303)
    start(request, answer, person)
    return answer


@router.post("/account/sign-out")
def end_some(request: Request, session: Annotated[int, Form(ge=0, le=2**53)] = 0) -> Response:
    """End one session, or all of them where none is named."""
    person, current = _signed_in(request), session_of(request)
    if session and current and session != current.id:
        end_sessions(request.app.state.database, person, session)
        return RedirectResponse("/account", 303)
    answer = RedirectResponse("/papers", 303)
    end(request, answer, everywhere=not session)
    return answer


@router.get("/people")
def people(request: Request) -> Response:
    demand(request, "invite")
    return _people(request)


@router.post("/people/invite")
def invite_one(request: Request, name: Short = "", role: Short = "member") -> Response:
    person = demand(request, "invite")
    limit(request, "invite", account=person.name)
    try:
        token = invite(request.app.state.database, name, role)
    except ValueError as error:
        return _people(request, wrong=str(error), name=name, status_code=422)
    base = request.app.state.public or str(request.base_url).rstrip("/")
    return _people(request, link=f"{base}/join/{token}", invited=name)


@router.post("/people/withdraw")
def withdraw_one(request: Request, name: Short = "") -> Response:
    demand(request, "invite")
    withdraw(request.app.state.database, name)
    return RedirectResponse("/people", 303)


@router.post("/people/{id}/role")
def change_one(request: Request, id: Id, role: Short = "") -> Response:
    person = demand(request, "change a role")
    try:
        change_role(request.app.state.database, id, role, by=person)
    except NotOwner as error:
        raise HTTPException(403, str(error)) from None
    except ValueError as error:
        raise HTTPException(422, str(error)) from None
    return RedirectResponse("/people", 303)


@router.post("/people/{id}/remove")
def remove_one(request: Request, id: Id) -> Response:
    person = demand(request, "remove a person")
    try:
        remove(request.app.state.database, id, by=person)
    except NotOwner as error:
        raise HTTPException(403, str(error)) from None
    return RedirectResponse("/people", 303)


def _signed_in(request: Request) -> Person:
    person = person_of(request)
    if person is None:
        raise HTTPException(401, "sign in first")
    return person


def _account(request: Request, person: Person, *, wrong: str = "", status_code: int = 200) -> Response:
    current = session_of(request)
    about: dict[str, Any] = {
        "sessions": sessions_of(request.app.state.database, person),
        "current": current,
        "wrong": wrong,
    }
    return page(request, "account.html", **about, status_code=status_code)


def _people(request: Request, *, status_code: int = 200, **about: Any) -> Response:
    database = request.app.state.database
    known = {"everyone": everyone(database), "invitations": open_invitations(database), "roles": ROLES}
    return page(request, "people.html", **known, **about, status_code=status_code)
