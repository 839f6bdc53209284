"""The page about the API: what there is to ask, and two ways to ask it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from thalweg.desk.feeds import base_of
from thalweg.desk.views import page

router = APIRouter(include_in_schema=False)
# What stands for the names in an address, where every desk has such a thing.
KNOWN = {"{name}": "galore", "{kind}": "atom"}
ASKED = {
    "/api/daily_papers": "?month=2024-03&sort=trending",
    "/api/papers/search": "?q=loss+spike&limit=3",
    "/feeds/papers.{kind}": "?finding=loss+spike",
}


@router.get("/api")
def about(request: Request) -> Response:
    """Read off the schema, so that nothing is missing and nothing is there that is not."""
    paths: dict[str, Any] = request.app.openapi()["paths"]
    found: dict[str, list[dict[str, Any]]] = {}
    for path, methods in paths.items():
        what = methods["get"]
        one = {
            "path": path,
            "says": what["description"].split("\n\n")[0].replace("``", ""),
            "takes": [each["name"] for each in what.get("parameters", []) if each["in"] == "query"],
            "example": _example(path),
        }
        found.setdefault(what["tags"][0], []).append(one)
    return page(request, "api.html", groups=found, base=base_of(request))


def _example(path: str) -> str:
    """An address that answers on every desk; empty where that takes a run, or does not end."""
    address = path
    for name, value in KNOWN.items():
        address = address.replace(name, value)
    return "" if "{" in address or address.endswith("/events") else address + ASKED.get(path, "")
