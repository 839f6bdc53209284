"""Accelerate: ``with watch_accelerator(accelerator) as run`` after ``accelerator.prepare``."""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import nn

from thalweg.watch.adapters._metrics import as_readings
from thalweg.watch.live import Run
from thalweg.watch.observe import watch

__all__ = ["watch_accelerator"]


def watch_accelerator(accelerator: Accelerator, model: nn.Module | None = None, **options: Any) -> Run:
    """Watch what an ``Accelerator`` has prepared: its model and its optimizers.

    What the loop logs with ``accelerator.log`` reaches the run too, at the step that was taken last or, of
    gradients that are still being accumulated, at the coming one. Losses of one step are one reading, their
    mean. ``accelerator.end_training()`` closes the run. Only the main process looks and writes; in the others
    the run counts steps, so the loop is written as if there were one process.

    Args:
        accelerator: after ``prepare``.
        model: the one to watch, where several have been prepared.
        options: for :func:`thalweg.watch.watch`, such as ``loss_fn``, ``budget``, ``store``, ``sinks``.

    Raises:
        ValueError: no optimizer, no model, or several models have been prepared; or as ``watch`` says.
    """
    optimizers, models = list(accelerator._optimizers), list(accelerator._models)
    if not optimizers:
        raise ValueError("accelerator must have prepared an optimizer, got none")
    if model is None:
        if len(models) != 1:
            raise ValueError(f"model must be given, since the accelerator has prepared {len(models)} models")
        (model,) = models
    several = optimizers if len(optimizers) > 1 else optimizers[0]
    run = watch(model, several, rank=accelerator.process_index, **options)
    accelerator.trackers.append(_ToRun(run, accelerator))
    return run


class _ToRun(GeneralTracker):
    """Hands on what an Accelerator logs."""

    name = "thalweg"
    requires_logging_directory = False

    def __init__(self, run: Run, accelerator: Accelerator):
        self.run, self.accelerator = run, accelerator
        # The step whose gradients are being accumulated, as far as something was logged meanwhile.
        self.coming: int | None = None
        super().__init__()

    @property
    def tracker(self) -> Run:
        return self.run

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        # The caller's step may count batches or epochs; a loop logs behind the optimizer's step.
        numbers = as_readings(values)
        if not numbers:
            return
        if not self.accelerator.sync_gradients:
            self.coming = self.run.step + 1
            self.run.log(step=self.coming, **numbers)
            return
        step, self.coming = self.coming or max(self.run.step, 1), None
        self.run.log(step=step, **numbers)

    def finish(self) -> None:
        self.run.close()
