"""The last line of defence: a page that imported papers break is made of the catalog alone, and says so."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import Response

from thalweg.desk.shelf import Shelf

__all__ = ["SurvivingRoute", "shelf_of"]

READ = ("GET", "HEAD")
AGAIN = 60.0  # seconds in which the same trouble is reported once, so that it costs readers nothing
REPAIR = "thalweg papers repair puts right what can be"
LOG = logging.getLogger("thalweg.desk")


def shelf_of(request: Request) -> Shelf:
    """The papers to show: the catalog's alone, where the imported ones were found to be unreadable.

    What changes something is never asked twice: there they are tried before anything is done.
    """
    state = request.app.state
    if request.method not in READ and not hasattr(request.state, "unreadable"):
        request.state.unreadable = ""
        try:
            _ = state.shelf.by_id, state.shelf.topics  # known already, unless something was imported since
        except Exception as error:
            request.state.unreadable = _reason(error)
            _report(request, request.state.unreadable, error)
    return state.catalog if getattr(request.state, "unreadable", "") else state.shelf


class SurvivingRoute(APIRoute):
    """Of a page that shows papers (``APIRouter(route_class=...)``): asked again without the imported ones.

    What goes wrong with the catalog alone as well is the asker's mistake, or another part's.
    Templates find the reason in ``request.state.unreadable``.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        ask = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await ask(request)
            except (HTTPException, RequestValidationError):
                raise
            except Exception as error:
                if request.method not in READ or request.app.state.shelf.library is None:
                    raise
                return await _without_imports(request, ask, error)

        return answer


async def _without_imports(
    request: Request, ask: Callable[[Request], Awaitable[Response]], error: Exception
) -> Response:
    reason = request.state.unreadable = _reason(error)
    try:
        answer = await ask(request)
    except HTTPException as refusal:  # the catalog does not know what was asked for
        _report(request, reason, error)
        raise HTTPException(503, f"{reason}; the catalog says: {refusal.detail}") from None
    except Exception:  # such as a date that is none
        request.state.unreadable = ""
        raise
    _report(request, reason, error)
    return answer


def _reason(error: Exception) -> str:
    return f"imported papers cannot be read ({type(error).__name__}: {str(error)[:200]})"


def _report(request: Request, reason: str, error: Exception) -> None:
    """On /health; with its traceback in the log."""
    state, now = request.app.state, time.monotonic()
    if now - state.reported.get(reason, -AGAIN) >= AGAIN:
        if reason not in state.reported:
            LOG.error("%s", reason, exc_info=error)
        state.reported[reason] = now
        state.problems.report("library", f"{reason}: {REPAIR}")
