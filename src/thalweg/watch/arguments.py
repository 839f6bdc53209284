"""What ``watch`` is given, looked at before anything is opened."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from thalweg._core.checks import check_not_negative
from thalweg.watch._store_schema import LATEST
from thalweg.watch.sink import Sink

__all__ = ["check_arguments"]

PAIRS = "evaluate must be ((inputs, targets), (inputs, targets)), of training and test data, targets a tensor"


def check_arguments(
    *,
    loss_fn: Any,
    evaluate: Any,
    budget: Any,
    store: Any,
    name: Any,
    on_finding: Any,
    sinks: Any,
    start: Any,
) -> None:
    """Raises ValueError, which names the argument, what is allowed and what it got."""
    if isinstance(budget, str | bool):
        raise ValueError(f"budget must be a number in [0, inf), such as 0.03, got {budget!r}")
    check_not_negative("budget", budget)
    if start is not None and (not isinstance(start, int) or not 0 <= start < LATEST):
        raise ValueError(f"start must be a whole number of steps, at least 0, got {start!r}{_why(start)}")
    for title, function, form in (
        ("loss_fn", loss_fn, "loss_fn(model, batch)"),
        ("on_finding", on_finding, "on_finding(finding)"),
    ):
        if function is not None and not callable(function):
            raise ValueError(f"{title} must be a function {form} or None, got {function!r}")
    if store is not None and not isinstance(store, str | os.PathLike):
        raise ValueError(f"store must be the path of a file or None, got {store!r}")
    if name is not None and not isinstance(name, str):
        raise ValueError(f"name must be a string or None, got {name!r}")
    if not isinstance(sinks, Sequence) or isinstance(sinks, str):
        raise ValueError(f"sinks must be a list of sinks such as TensorBoardSink(folder), got {sinks!r}")
    for sink in sinks:
        if not isinstance(sink, Sink):
            raise ValueError(f"sinks must hold sinks such as TensorBoardSink(folder), got {sink!r}")
    if evaluate is not None:
        _check_pairs(evaluate)


def check_step(step: Any) -> int:
    """The step that a number is logged for; raises ValueError for what is none."""
    try:
        found = int(step) if isinstance(step, float) and step.is_integer() else operator.index(step)
    except TypeError:
        found = -1
    if not 0 <= found < LATEST:
        raise ValueError(f"step must be a whole number of steps, at least 0, got {step!r}{_why(step)}")
    return found


def _why(step: Any) -> str:
    return ": it must be below 2**53" if isinstance(step, int | float) and step >= LATEST else ""


def _check_pairs(evaluate: Any) -> None:
    if not isinstance(evaluate, tuple | list) or len(evaluate) != 2:
        raise ValueError(f"{PAIRS}; got {_kind(evaluate)}")
    for which, pair in zip(("training", "test"), evaluate, strict=True):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            hint = ": give the tensors, or one batch of it" if hasattr(pair, "dataset") else ""
            raise ValueError(f"{PAIRS}; got {_kind(pair)} as {which} data{hint}")
        inputs, targets = pair
        if not isinstance(targets, Tensor):
            raise ValueError(f"{PAIRS}; got {_kind(targets)} as targets of the {which} data")
        if isinstance(inputs, Tensor) and inputs.shape[:1] != targets.shape[:1]:
            shapes = f"{tuple(inputs.shape)} and {tuple(targets.shape)}"
            raise ValueError(f"{PAIRS}; got shapes {shapes} as {which} data")


def _kind(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
