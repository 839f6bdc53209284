"""Templates and how a page is made of one."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader
from starlette.responses import Response

from thalweg.desk.comments import discussion
from thalweg.desk.counts import tallies
from thalweg.desk.csrf import keep, token
from thalweg.desk.people import anyone
from thalweg.desk.sessions import person_of
from thalweg.desk.times import ago, iso, spoken

__all__ = ["page"]

FOLDER = Path(__file__).parent / "templates"
TEMPLATES = Jinja2Templates(
    env=Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
)
TEMPLATES.env.filters |= {"ago": ago, "iso": iso, "spoken": spoken}


def page(request: Request, template: str, *, status_code: int = 200, **about: Any) -> Response:
    """A page; everything that it is given is escaped.

    Every template knows ``person`` who looks (None for a reader); templates and macros know the functions
    ``csrf()``, ``viewer()``, ``has_people()``, ``tally(keys)``, ``discussion(key)`` and ``here()``.
    """
    about["has_runs"] = request.app.state.store is not None
    about["person"] = person_of(request)
    asking = _ASKING.set(request)
    try:
        answer = TEMPLATES.TemplateResponse(request, template, about, status_code=status_code)
    finally:
        _ASKING.reset(asking)
    keep(request, answer)
    return answer


_ASKING: ContextVar[Request] = ContextVar("asking")


def _asked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the request whose page is being made, which macros cannot be given otherwise."""
    return lambda *values: function(_ASKING.get(), *values)


def _has_people(request: Request) -> bool:
    if not hasattr(request.state, "has_people"):
        request.state.has_people = anyone(request.app.state.database)
    return request.state.has_people


def _here(request: Request) -> str:
    """To come back to: ``next`` of a form."""
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


TEMPLATES.env.globals |= {
    "csrf": _asked(token),
    "discussion": _asked(discussion),
    "has_people": _asked(_has_people),
    "here": _asked(_here),
    "tally": _asked(tallies),
    "viewer": _asked(person_of),
}
