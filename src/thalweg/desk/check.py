"""One line of the health page; a file of this room that has ``checks(state)`` adds its own by being there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check"]

State = Literal["good", "warn", "bad"]


@dataclass(frozen=True)
class Check:
    """``what`` says in words how ``name`` is; ``when`` it last happened, in seconds of 1970, if that matters.

    Every reader sees ``what``: no secret, no address of a person, no path outside of the desk's folder.
    """

    name: str
    state: State
    what: str
    when: float | None = None
