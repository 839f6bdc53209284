"""Attach to a training loop: ``with thalweg.watch(model, opt) as run``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from thalweg.watch.arguments import check_arguments
from thalweg.watch.live import Run
from thalweg.watch.readings import Finding
from thalweg.watch.recording import begin_recording, earlier_run
from thalweg.watch.sink import Sink
from thalweg.watch.store import RunInfo, RunStore
from thalweg.watch.watched import steps_taken, watched_optimizers

__all__ = ["watch"]

DEFAULT_STORE = Path("runs") / "thalweg.sqlite"
Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | Mapping[str, torch.optim.Optimizer]


def watch(
    model: nn.Module | None,
    optimizer: Optimizers,
    *,
    loss_fn: Callable[..., Tensor] | None = None,
    evaluate: tuple[Any, Any] | None = None,
    budget: float = 0.03,
    store: str | Path | None = DEFAULT_STORE,
    name: str | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    sinks: Sequence[Sink] = (),
    resume: bool | int | str = False,
    start: int | None = None,
    rank: int | None = None,
) -> Run:
    """Watch a training run through its optimizer; works in any loop that calls ``optimizer.step()``.

    Watching changes nothing: not the gradients, random states, buffers, attributes of modules or modes; nor
    what hooks and ``loss_fn`` keep in variables, containers and their own object, though they run more often.

    Of several optimizers each is read just before its own step, of its own parameters: the first one's
    readings have the plain names, another's are called ``gradient norm of NAME``, where NAME is its key in
    the mapping, or its class. A step of the run ends when an optimizer that has stepped in it steps again.

    Args:
        model: the network; None to see only the optimizer's gradients and weights.
        optimizer: any ``torch.optim.Optimizer``, a sequence of them, or a mapping of names to them.
        loss_fn: ``loss_fn(model, batch)`` to a scalar; enables sharpness, with ``run.log(batch=...)``. It is
            given the model without the wrappers of DDP and ``torch.compile``.
        evaluate: (train, test), each (inputs, targets); enables accuracies and the test loss, of classes,
            yes or no, or numbers (the loss alone). Targets of -100 do not count. Or log them yourself.
        budget: seconds of watching per second of training, at least 0; 0.03 by default.
        store: SQLite file that readings go to, made if need be; None for none.
        name: of the run; by default the model's class and the time.
        on_finding: called with each finding, on another thread; it may read the run, and close it.
        sinks: other trackers that readings and findings go to as well, such as ``TensorBoardSink(folder)``.
        resume: go on with a run in the store, given by id or name, or by True: the latest called ``name``, or
            a new one if there is none. What it had recorded behind ``start`` makes way for what comes.
        start: optimizer steps taken before; steps are counted on from there. By default 0, and for a resumed
            run what the optimizer's state says, or else the last step that was stored.
        rank: of this process among those that train together, by default that of ``torch.distributed``. Only
            rank 0 looks and writes; in the others a run counts steps and does nothing else.

    Raises:
        ValueError: for a model or optimizer without parameters, an optimizer of another model, a negative
            budget, functions that are none, data in ``evaluate`` that are no pairs, a run to resume that is
            not there, or a store that is not ours or cannot be written.
    """
    check_arguments(
        loss_fn=loss_fn,
        evaluate=evaluate,
        budget=budget,
        store=store,
        name=name,
        on_finding=on_finding,
        sinks=sinks,
        start=start,
    )
    budget = float(budget)
    optimizers = watched_optimizers(model, optimizer)
    if rank is None:
        rank = distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0
    if rank:
        store, sinks, on_finding = None, (), None
    if store is None and resume and not rank:
        raise ValueError(f"resume={resume!r} needs a store, got store=None")
    opened = None if store is None else RunStore(store, write=True)
    earlier: RunInfo | None = None
    try:
        if opened is not None and resume is not False:
            earlier = earlier_run(opened, resume, name)
    except ValueError:
        if opened is not None:
            opened.close()
        raise
    if start is None:
        counts = [steps_taken(one.optimizer) for one in optimizers] if resume is not False else []
        start = max((count for count in counts if count), default=earlier.steps if earlier else 0)
    default = f"{'run' if model is None else type(model).__name__} {datetime.now():%Y-%m-%d %H:%M:%S}"
    name = name or (earlier.name if earlier else default)
    sizes = {id(p): p.numel() for one in optimizers for p in one.named.values()}
    about = {
        **optimizers[0].about(),
        "model": None if model is None else type(model).__name__,
        "parameters": sum(sizes.values()),
        "budget": budget,
    }
    if len(optimizers) > 1:
        about["optimizers"] = {one.title: type(one.optimizer).__name__ for one in optimizers}
    recorder = begin_recording(
        optimizers,
        about,
        name=name,
        store=opened,
        sinks=sinks,
        on_finding=on_finding,
        earlier=earlier,
        start=start,
    )
    return Run(
        model,
        optimizers,
        recorder,
        loss_fn=loss_fn,
        evaluate=evaluate,
        budget=budget,
        name=name,
        start=start,
        looks=not rank,
    )
