"""Writing, changing and taking away comments; the address of one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Path, Request
from starlette.responses import RedirectResponse, Response

from thalweg.desk.comments import Comment, change, found, page_of, take_away, write
from thalweg.desk.limits import limit
from thalweg.desk.paper_pages import paper_of
from thalweg.desk.people import Person
from thalweg.desk.rights import demand
from thalweg.desk.views import page

router = APIRouter(include_in_schema=False)
# Longer than a comment may be, so that a little too much is said in words and does not get lost.
Text = Annotated[str, Form(max_length=100_000)]
Id = Annotated[int, Path(ge=1, le=2**53)]


@router.post("/papers/{name}/comments")
def comment(request: Request, name: str, text: Text = "") -> Response:
    person = demand(request, "comment")
    paper = paper_of(request, name)
    database = request.app.state.database
    try:
        limit(request, "comment", account=person.name)
        made = found(database, write(database, paper.key, person, text))
    except (ValueError, HTTPException) as error:
        about = {"action": f"/papers/{paper.key}/comments", "back": f"/papers/{paper.key}"}
        return _again(request, about, text, error)
    assert made is not None
    return _shown(request, made)


@router.get("/comments/{id}")
def one(request: Request, id: Id) -> Response:
    """The address of a comment stays; the page that it stands on may change."""
    return _shown(request, _comment(request, id))


@router.get("/comments/{id}/edit")
def edit(request: Request, id: Id) -> Response:
    made, _ = _own(request, id)
    return page(request, "comment.html", **_about(made), text=made.text, wrong="")


@router.post("/comments/{id}/edit")
def edited(request: Request, id: Id, text: Text = "") -> Response:
    made, person = _own(request, id)
    try:
        limit(request, "comment", account=person.name)
        change(request.app.state.database, made, text)
    except (ValueError, HTTPException) as error:
        return _again(request, _about(made), text, error)
    return _shown(request, made)


@router.post("/comments/{id}/delete")
def delete(request: Request, id: Id) -> Response:
    person = demand(request, "delete their own comment")
    made = _comment(request, id)
    if not made.deletable(person):
        raise HTTPException(403, "only its author and a moderator may take a comment away")
    take_away(request.app.state.database, made, person)
    return RedirectResponse(f"/papers/{made.paper}#comments", 303)


def _comment(request: Request, id: int) -> Comment:
    made = found(request.app.state.database, id)
    if made is None:
        raise HTTPException(404, f"there is no comment {id}")
    return made


def _own(request: Request, id: int) -> tuple[Comment, Person]:
    person = demand(request, "edit their own comment")
    made = _comment(request, id)
    if not made.editable(person):
        raise HTTPException(403, "only its author may change a comment, for a day after writing it")
    return made, person


def _about(made: Comment) -> dict[str, Any]:
    return {"action": f"/comments/{made.id}/edit", "back": f"/papers/{made.paper}#comment-{made.id}"}


def _again(request: Request, about: dict[str, Any], text: str, error: ValueError | HTTPException) -> Response:
    """The form with what was typed: it was wrong, or came too soon after others."""
    if isinstance(error, HTTPException):
        answer = page(
            request, "comment.html", **about, text=text, wrong=error.detail, status_code=error.status_code
        )
        answer.headers.update(error.headers or {})
        return answer
    return page(request, "comment.html", **about, text=text, wrong=str(error), status_code=422)


def _shown(request: Request, made: Comment) -> Response:
    number = page_of(request.app.state.database, made)
    return RedirectResponse(f"/papers/{made.paper}?comments={number}#comment-{made.id}", 303)
