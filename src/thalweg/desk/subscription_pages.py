"""Pages by which somebody subscribes, confirms, chooses anew and ends it; every one works without scripts.

Opening a link never changes anything, since mail scanners open them all; a button does.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Path, Query, Request
from starlette.background import BackgroundTask
from starlette.responses import RedirectResponse, Response

from thalweg._core.checks import check_choice
from thalweg.desk.csrf import unchecked
from thalweg.desk.ledger import Ledger
from thalweg.desk.limits import limit
from thalweg.desk.mailbox import mail_address
from thalweg.desk.postman import Postman
from thalweg.desk.settings import MailSettings, mail_settings
from thalweg.desk.subscriptions import DAY, EVERY, HOLDS, Subscriber, Subscriptions
from thalweg.desk.surviving import SurvivingRoute, shelf_of
from thalweg.desk.views import page
from thalweg.desk.wants import Wants, checked_wants, showable_wants

router = APIRouter(include_in_schema=False, route_class=SurvivingRoute)
USUAL, MOST = 40, 1500  # topics to tick, and topics that the field for others proposes
Chosen = Annotated[list[str], Form(default_factory=list, max_length=50)]
Asked = Annotated[list[str], Query(default_factory=list, max_length=50)]
# A page whose address is a secret is kept nowhere and told to nobody.
PRIVATE = {"Cache-Control": "no-store", "X-Robots-Tag": "noindex"}


def mail_of(request: Request) -> tuple[MailSettings | None, str]:
    """How mail is sent, or None and why there is none."""
    state = request.app.state
    if state.database is None:
        return None, "the desk has no database"
    try:
        found = mail_settings(state.database.folder, public_url=state.public or "")
    except (OSError, ValueError):
        return None, "its settings are not right; the health page says why"
    return found, "" if found else "no mail server is configured"


@router.get("/subscribe")
def form(request: Request, topic: Asked, room: Asked, finding: Asked, q: Asked) -> Response:
    """What there is to choose from; what the asker came from is chosen already."""
    _, why = mail_of(request)
    chosen = (topic, room, finding, q)
    try:
        choices = _choices(request, checked_wants(shelf_of(request), *chosen), "weekly")
    except ValueError as error:
        choices = _again(request, chosen, "weekly", error)
    code = 400 if choices["wrong"] else 200
    return page(request, "subscribe.html", why=why, email="", **choices, status_code=code)


@router.post("/subscribe")
def subscribe(
    request: Request,
    topic: Chosen,
    room: Chosen,
    finding: Chosen,
    q: Chosen,
    email: Annotated[str, Form(max_length=320)] = "",
    every: Annotated[str, Form(max_length=10)] = "weekly",
) -> Response:
    """One answer for every address; what differs goes to the mailbox, after the answer."""
    settings, why = mail_of(request)
    if settings is None:
        raise HTTPException(503, f"this desk sends no mail: {why}")
    check_choice("every", every, EVERY)
    chosen = (topic, room, finding, q)
    try:
        wants = checked_wants(shelf_of(request), *chosen)
        address = mail_address(email, "the e-mail address")
    except ValueError as error:
        again = _again(request, chosen, every, error)
        return page(request, "subscribe.html", why="", email=email, **again, status_code=400)
    limit(request, "subscribe", account=address)
    asked = _subscriptions(request).ask(address, every, wants, time.time())
    answer = page(request, "subscribed.html", hours=1, days=round(HOLDS / DAY))
    if asked is not None:
        postman = Postman(request.app.state.database, shelf_of(request), settings, request.app.state.problems)
        answer.background = BackgroundTask(_confirmation, postman, asked)
    return answer


@router.get("/subscriptions/confirm/{token}")
def look(request: Request, token: str) -> Response:
    asked = _subscriptions(request).asked(token, time.time())
    if asked is None:
        return _private(page(request, "unconfirmed.html", status_code=404))
    return _private(page(request, "confirm.html", token=token, every=asked.every, wants=asked.wants))


@router.post("/subscriptions/confirm/{token}")
def confirm(request: Request, token: str) -> Response:
    made = _subscriptions(request).confirm(token, time.time())
    if made is None:
        return _private(page(request, "unconfirmed.html", status_code=404))
    return _private(RedirectResponse(f"/subscriptions/{made.secret}?done=confirmed", 303))


@router.get("/subscriptions/{secret}")
def manage(request: Request, secret: str, done: Annotated[str, Query(max_length=20)] = "") -> Response:
    who = _subscriber(request, secret)
    choices = _choices(request, who.wants, who.every)
    return _private(page(request, "subscription.html", who=who, done=done, **choices))


@router.post("/subscriptions/{secret}")
def change(
    request: Request,
    secret: str,
    topic: Chosen,
    room: Chosen,
    finding: Chosen,
    q: Chosen,
    every: Annotated[str, Form(max_length=10)] = "weekly",
) -> Response:
    who, chosen = _subscriber(request, secret), (topic, room, finding, q)
    try:
        _subscriptions(request).change(secret, every, checked_wants(shelf_of(request), *chosen))
    except ValueError as error:
        again = _again(request, chosen, every, error)
        return _private(page(request, "subscription.html", who=who, done="", **again, status_code=400))
    return _private(RedirectResponse(f"/subscriptions/{secret}?done=changed", 303))


@router.get("/subscriptions/{secret}/unsubscribe")
def leave(request: Request, secret: str) -> Response:
    known = _subscriptions(request).of_secret(secret) is not None
    return _private(page(request, "unsubscribe.html", secret=secret, known=known, ended=False))


@router.post("/subscriptions/{secret}/unsubscribe")
@unchecked("a mailbox provider sends it without cookies (RFC 8058); the address holds a secret")
def unsubscribe(request: Request, secret: str, never: Annotated[str, Form(max_length=10)] = "") -> Response:
    """The same answer the second time: mailboxes and people press twice."""
    _subscriptions(request).end(secret, never=never == "yes")
    return _private(page(request, "unsubscribe.html", secret=secret, known=False, ended=True))


@router.get("/subscriptions/{secret}/mails/{mail}")
def mail(request: Request, secret: str, mail: Annotated[int, Path(ge=1, lt=1 << 63)]) -> Response:
    """All papers that one mail brought or counted."""
    who, shelf = _subscriber(request, secret), shelf_of(request)
    found = []
    for name in Ledger(request.app.state.database).mail(who.id, mail):
        try:
            found.append(shelf.paper(name))
        except ValueError:
            continue  # it has left the desk since
    if not found:
        raise HTTPException(404, "there is no such mail")
    return _private(page(request, "mailed.html", papers=found))


def _confirmation(postman: Postman, asked: int) -> None:
    """After the answer, so that its time says nothing; a failure is the owner's to know."""
    try:
        postman.confirmation(asked)
    except (OSError, sqlite3.Error) as error:
        postman.problems.report("mail", f"a confirmation was not sent: {type(error).__name__}")


def _subscriptions(request: Request) -> Subscriptions:
    database = request.app.state.database
    if database is None:
        raise HTTPException(503, "the desk has no database, so that nobody can subscribe")
    return Subscriptions(database)


def _subscriber(request: Request, secret: str) -> Subscriber:
    found = _subscriptions(request).of_secret(secret)
    if found is None:
        raise HTTPException(404, "there is no such subscription (any more)")
    return found


def _choices(request: Request, wants: Wants, every: str) -> dict[str, Any]:
    """What the form of ``_choices.html`` needs."""
    shelf = shelf_of(request)
    topics = [topic for topic, _ in shelf.topics]
    return {
        "wants": wants,
        "every": every,
        "topics": list(dict.fromkeys((*wants.topics, *topics[:USUAL]))),
        "further": topics[USUAL:MOST],
        "rooms": sorted({one.room for one in shelf.papers}),
        "findings": list(shelf.findings),
        "other": "",
        "wrong": "",
    }


def _again(request: Request, chosen: tuple[list[str], ...], every: str, error: ValueError) -> dict[str, Any]:
    """The same with what was chosen and typed, and what is wrong with it."""
    wants, other = showable_wants(shelf_of(request), *chosen)
    return {**_choices(request, wants, every), "other": other, "wrong": str(error)}


def _private(answer: Response) -> Response:
    answer.headers.update(PRIVATE)
    return answer
