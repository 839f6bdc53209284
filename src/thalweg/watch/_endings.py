"""How a run ends: what the outcome is called, whose it is to end, and what is kept of it."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from torch.optim import Optimizer

if TYPE_CHECKING:
    from thalweg.watch.live import Run

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


def without_optimizer(runs: Iterable[Run], *, thorough: bool) -> list[Run]:
    """Those whose one optimizer nobody else holds any more, so that they will never step again.

    Args:
        thorough: also find optimizers that are held in a circle of references, which takes a while.
    """
    looked = list(runs)
    known = [_loosened(run) for run in looked]
    if thorough:
        gc.collect()
    lost = []
    for run, reference in zip(looked, known, strict=True):
        if (optimizer := reference()) is None:
            lost.append(run)
        else:
            run.watched[0].optimizer = run.moment.optimizer = optimizer
    return lost


def _loosened(run: Run) -> ref[Optimizer]:
    optimizer = ref(run.watched[0].optimizer)
    nothing: Any = None
    run.watched[0].optimizer = run.moment.optimizer = nothing
    return optimizer


def release(run: Run) -> None:
    """Let a closed run go of model and data; its findings, steps and cost stay, and what was left out."""
    words = run.left_out()
    vars(run)["left_out"] = lambda: words
    moment = run.moment
    moment.model = moment.loss_fn = moment.batch = moment.inputs = moment.output = moment.targets = None
    moment.evaluate, moment.named, moment.memory = None, {}, {}
    moment.evaluations.clear()
    run.watched = ()
    del run._looks, run._listener


def _let_go() -> None:
    for run in list(_runs):
        run.detach()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
