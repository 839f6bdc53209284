"""Lightning: ``Trainer(callbacks=[LightningCallback()])``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from thalweg.watch.adapters._metrics import as_readings
from thalweg.watch.live import Run
from thalweg.watch.observe import watch

__all__ = ["LightningCallback"]


class LightningCallback(Callback):
    """Watches what a Lightning ``Trainer`` trains; model, optimizers, steps, batches and losses are found.

    The loss of a step is what was differentiated in it, added up over accumulated batches; with several
    optimizers, that of each since the last step of any. Metrics of validation become readings: ``val_loss``
    the ``test loss``, ``val_acc`` the ``test accuracy``. Only rank 0 looks and writes. A fit that resumes
    from a checkpoint goes on in the run of the store that has the same ``name``, if one is given.

    Args:
        model: which part of the LightningModule is watched, as a function of it. By default the one child
            that holds all trained parameters, such as ``self.net``, since a LightningModule is rarely called
            itself and then shows no activations; the LightningModule if there is none.
        options: for :func:`thalweg.watch.watch`, such as ``loss_fn``, ``budget``, ``store``, ``sinks``.

    Attributes:
        run: the latest run, None before training.
    """

    def __init__(self, model: Callable[[LightningModule], nn.Module] | None = None, **options: Any):
        self.model, self.options = model, options
        self.run: Run | None = None
        self._loss: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("left open")
        self.run = None
        # Where configure_optimizers gives none, Lightning puts one in its place that holds nothing.
        optimizers = [one for one in trainer.optimizers if any(group["params"] for group in one.param_groups)]
        if not optimizers:
            warnings.warn("thalweg: the LightningModule has no optimizer, and is not watched", stacklevel=2)
            return
        model = self.model(pl_module) if self.model else _trained(pl_module, optimizers)
        # Lightning counts the steps of all optimizers together.
        start = trainer.global_step // len(optimizers)
        options = {"start": start, "resume": start > 0 and "name" in self.options, **self.options}
        if options.get("store", "") is None:
            options["resume"] = False
        several = optimizers if len(optimizers) > 1 else optimizers[0]
        self.run = watch(model, several, rank=trainer.global_rank, **options)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.run is not None:
            self.run.log(batch=batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # The scaler's own tensor: asking for its number would wait for the device.
        scale = getattr(scaler, "_scale", None)
        loss = loss.detach() if scale is None else loss.detach() / scale
        self._loss = loss if self._loss is None else self._loss + loss

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self.run is None or self._loss is None:
            return
        label = next((one.label for one in self.run.watched if one.optimizer is optimizer), "")
        numbers: dict[str, Any] = {f"loss of {label}" if label else "loss": self._loss}
        self.run.log(**numbers)
        self._loss = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.run is not None and len(self.run.watched) == 1:
            self.run.skip_to(trainer.global_step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.run is not None and not trainer.sanity_checking:
            self._tell({key: one for key, one in trainer.callback_metrics.items() if key.startswith("val")})

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The training loss of an epoch is a mean of what is known step by step.
        known = {key: one for key, one in trainer.callback_metrics.items() if key.startswith("train")}
        self._tell({key: one for key, one in known.items() if "loss" not in key})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close("finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close(type(exception).__name__)

    def _tell(self, metrics: dict[str, Any]) -> None:
        numbers = as_readings(metrics)
        if self.run is not None and numbers:
            self.run.log(step=self.run.step, **numbers)

    def _close(self, outcome: str) -> None:
        if self.run is not None:
            self.run.close(outcome)
        self._loss = None


def _trained(module: LightningModule, optimizers: list[Optimizer]) -> nn.Module:
    """The one child that holds every parameter of the optimizers, or the module itself."""
    wanted = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    holders = [child for child in module.children() if wanted <= {id(p) for p in child.parameters()}]
    return holders[0] if len(holders) == 1 else module
