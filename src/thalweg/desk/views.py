"""Templates and how a page is made of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.templating import Jinja2Templates
from jinja2 import Environment, FileSystemLoader
from starlette.responses import Response

from thalweg.desk.csrf import keep, token
from thalweg.desk.sessions import person_of
from thalweg.desk.times import ago, iso

__all__ = ["page"]

FOLDER = Path(__file__).parent / "templates"
TEMPLATES = Jinja2Templates(
    env=Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True, lstrip_blocks=True)
)
TEMPLATES.env.filters |= {"ago": ago, "iso": iso}


def page(request: Request, template: str, *, status_code: int = 200, **about: Any) -> Response:
    """A page; everything that it is given is escaped. Templates know ``person`` (or None) and ``csrf()``."""
    about["has_runs"] = request.app.state.store is not None
    about["person"] = person_of(request)
    about["csrf"] = partial(token, request)
    answer = TEMPLATES.TemplateResponse(request, template, about, status_code=status_code)
    keep(request, answer)
    return answer
