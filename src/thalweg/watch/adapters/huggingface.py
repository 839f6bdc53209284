"""Hugging Face: ``Trainer(..., callbacks=[HuggingFaceCallback()])``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from thalweg.watch.adapters._metrics import as_readings
from thalweg.watch.hooks import Listener
from thalweg.watch.live import Run
from thalweg.watch.observe import watch

__all__ = ["HuggingFaceCallback"]

COUNT = "num_items_in_batch"
LABELS = (
    "a model that is given its labels and gives its loss: not with label_smoothing_factor, compute_loss_func "
    "or a compute_loss of one's own"
)


class HuggingFaceCallback(TrainerCallback):
    """Watches what a ``transformers.Trainer`` trains; model, optimizer, steps and losses are found.

    The loss of every step is that which the model gives, added up over the batches of the step as the Trainer
    does; where the Trainer computes it without the model, its own logged mean is taken. Metrics of evaluation
    become readings, ``eval_accuracy`` the ``test accuracy``. Only the first process looks and writes. The run
    is called like the Trainer's ``run_name`` or output folder, and goes on in the same run of the store when
    training is resumed from a checkpoint. A Trainer tells its callbacks of no exception: a run that one ended
    is closed when the script ends, or when the callback is used in a ``with`` block.

    Args:
        options: for :func:`thalweg.watch.watch`, such as ``budget``, ``store``, ``sinks``, ``on_finding``.

    Attributes:
        run: the latest run, None before training.
    """

    def __init__(self, **options: Any):
        self.options = options
        self.run: Run | None = None
        self._given = options.get("loss_fn") is not None
        self._losses: list[Tensor] = []
        self._share, self._processes, self._heard = 1.0, 1, False
        self._listener = Listener()
        self._hook: Any = None

    def on_train_begin(self, args, state, control, model=None, optimizer=None, **_):
        self.close("left open")
        start = int(state.global_step)
        name = self.options.get("name") or args.run_name or Path(args.output_dir or "run").name
        options = {"name": name, "start": start, "resume": start > 0, **self.options}
        if options.get("store", "") is None:
            options["resume"] = False
        self.run = watch(model, optimizer, rank=args.process_index, **options)
        self.run.moment.ways = dict.fromkeys(("batch", "loss_fn", "targets"), LABELS)
        # Losses are added up over processes too, each divided by the items of all.
        self._processes = args.world_size if args.average_tokens_across_devices else 1
        if args.process_index == 0:
            self._listener = Listener(model, self._hear)
            self._hook = model.register_forward_hook(self._listener, with_kwargs=True)

    def on_substep_end(self, args, state, control, **_):
        self._listener.take()

    def on_pre_optimizer_step(self, args, state, control, **_):
        self._listener.take()
        if self._losses and self.run is not None:
            self.run.log(loss=torch.stack(self._losses).sum() * self._share)
            self._losses.clear()

    def on_step_end(self, args, state, control, **_):
        if self.run is not None:
            self.run.skip_to(int(state.global_step))

    def on_log(self, args, state, control, logs=None, **_):
        if self.run is None or not logs:
            return
        numbers = as_readings({key: value for key, value in logs.items() if key != "train_loss"})
        if "grad norm" in numbers:
            numbers["gradient norm before clipping"] = numbers.pop("grad norm")
        if self._heard:
            numbers.pop("loss", None)
        if numbers:
            self.run.log(step=int(state.global_step), **numbers)

    def on_train_end(self, args, state, control, **_):
        self.close()

    def close(self, outcome: str = "finished") -> None:
        """End the run, if one is open."""
        if self.run is not None:
            self.run.close(outcome)
        if self._hook is not None:
            self._hook.remove()
            self._listener.stop()
        self._losses.clear()
        self._heard = False

    def __enter__(self) -> HuggingFaceCallback:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close("finished" if kind is None else kind.__name__)

    def _hear(self, args: tuple, kwargs: Mapping[str, Any], output: Any) -> None:
        """After a forward pass in training: keep the loss on its device, tell the run batch and targets."""
        loss = getattr(output, "loss", None)
        if self.run is None or not isinstance(loss, Tensor):
            return
        moment = self.run.moment
        # Divided by the items of all batches of the step, a loss is a part of their sum; else, of a mean.
        counted = kwargs.get(COUNT) is not None
        self._losses.append(loss.detach().mean())
        self._share = self._processes if counted else 1 / len(self._losses)
        self._heard = True
        moment.batch = {key: value for key, value in kwargs.items() if key != COUNT}
        if not self._given:
            moment.loss_fn = _loss
        # The run has noted the labels among the model's keywords.
        moment.targets = None


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    return model(**batch).loss
