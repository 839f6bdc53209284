"""The last linear layer of a model, and what enters it: the features that the rest of the model makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thalweg.probe._logits import logits_of
from thalweg.probe._quiet import modules_named
from thalweg.probe._units import overhear


def head_name(model: nn.Module, batch: Any) -> str | None:
    """The linear layer whose output the model returns, else the last one that runs; None if none runs once.

    Found by running the model on ``batch`` in evaluation mode without gradients.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    outputs: dict[str, Tensor] = {}

    def note(run: str, output: Tensor) -> None:
        outputs[run] = output

    if not linear:
        return None
    try:
        result = overhear(model, batch, linear, {}, note, all_run=False)
    except ValueError:
        return None
    result = logits_of(result)
    once = [name for name in outputs if name in linear and f"{name}[1]" not in outputs]
    for name in once:
        if isinstance(result, Tensor) and outputs[name].data_ptr() == result.data_ptr():
            return name
    return once[-1] if once else None


@contextmanager
def statistics_of_the_batch(model: nn.Module) -> Iterator[None]:
    """Batch normalisation by the batch at hand, as in training, with the running statistics left alone."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    running = [(norm.running_mean, norm.running_var) for norm in norms]
    try:
        for norm in norms:
            norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, (mean, variance) in zip(norms, running, strict=True):
            norm.running_mean, norm.running_var = mean, variance


@torch.no_grad()
def features_and_output(
    model: nn.Module, batch: Any, head: str, *, own_statistics: bool = False
) -> tuple[Tensor, Any]:
    """What enters the layer called ``head``, and what the model returns; evaluation mode, no gradients.

    Args:
        own_statistics: let batch normalisation take the statistics of ``batch``, not the running ones.

    Raises:
        ValueError: the layer is not there or does not run.
    """
    found: list[Tensor] = []

    def note(run: str, features: Tensor) -> None:
        found.append(features)

    with statistics_of_the_batch(model) if own_statistics else nullcontext():
        result = overhear(model, batch, {}, modules_named(model, [head]), note)
    return found[-1], logits_of(result)
