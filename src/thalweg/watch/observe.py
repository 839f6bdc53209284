"""Attach to a training loop: ``with thalweg.watch(model, opt) as run``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thalweg._core.checks import check_not_negative
from thalweg.watch.hooks import named_parameters
from thalweg.watch.live import Run
from thalweg.watch.readings import Finding
from thalweg.watch.store import RunStore

__all__ = ["watch"]

DEFAULT_STORE = Path("runs") / "thalweg.sqlite"


def watch(
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    *,
    loss_fn: Callable[..., Tensor] | None = None,
    evaluate: tuple[Any, Any] | None = None,
    budget: float = 0.03,
    store: str | Path | None = DEFAULT_STORE,
    name: str | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> Run:
    """Watch a training run through its optimizer; works in any loop that calls ``optimizer.step()``.

    Watching changes nothing: not the gradients, the random state, the batch-norm statistics or the mode.

    Args:
        model: the network; None to see only the optimizer's gradients and weights.
        optimizer: any ``torch.optim.Optimizer``.
        loss_fn: ``loss_fn(model, batch)`` to a scalar; enables sharpness, with ``run.log(batch=...)``.
        evaluate: (train, test), each (inputs, targets); enables accuracies. Or log them yourself.
        budget: seconds of watching per second of training, at least 0; 0.03 by default.
        store: SQLite file that readings go to, made if need be; None for none.
        name: of the run; by default the model's class and the time.
        on_finding: called with each finding, on another thread.

    Raises:
        ValueError: for a model or optimizer without parameters, an optimizer of another model, a negative
            budget, or a store that is not ours or cannot be written.
    """
    check_not_negative("budget", budget)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not held:
        raise ValueError("optimizer must hold parameters, got none")
    named = named_parameters(model, held)
    default = f"{'run' if model is None else type(model).__name__} {datetime.now():%Y-%m-%d %H:%M:%S}"
    return Run(
        model,
        optimizer,
        named,
        loss_fn=loss_fn,
        evaluate=evaluate,
        budget=budget,
        store=None if store is None else RunStore(store, write=True),
        name=name or default,
        on_finding=on_finding,
    )
