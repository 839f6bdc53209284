"""How a run ends: what the outcome is called, and that a forked process does not end its parent's runs."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from thalweg.watch.live import Run

__all__ = ["outcome_of_block", "outcome_of_script", "stays_with_this_process"]

_runs: WeakSet[Run] = WeakSet()


def outcome_of_block(kind: type[BaseException] | None, error: BaseException | None) -> str:
    """Of a ``with`` block that was left with this exception; a script may exit well."""
    if kind is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "finished"
    return kind.__name__


def outcome_of_script() -> str:
    """Of a run that is still open when the script ends."""
    # An interactive session goes on after an error, which then says nothing about the run.
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_type", None)
    return "left open" if error is None else error.__name__


def stays_with_this_process(run: Run) -> None:
    """Let processes that are forked from this one go of the run.

    Its thread is not forked, a connection to SQLite must not be used in both, and a data loader's worker that
    exits would mark a run as ended that goes on.
    """
    _runs.add(run)


def _let_go() -> None:
    for run in list(_runs):
        run.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
