"""A batch as a user holds it: cutting it by example, counting it, running one model on it undisturbed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss
from torch.nn.parallel import DistributedDataParallel

from thalweg._core.not_finite import NotFiniteError
from thalweg.probe._untouched import untouched
from thalweg.probe._wrapped import check_module, uncompiled

LossFn = Callable[[nn.Module, Any], Tensor]


def changed(batch: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same structure of tuples, lists, mappings and dataclasses with every tensor changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        entries = {key: changed(value, change) for key, value in batch.items()}
        return entries if isinstance(batch, dict) else type(batch)(entries)  # type: ignore[call-arg]
    if isinstance(batch, tuple | list):
        inner = [changed(value, change) for value in batch]
        return type(batch)(*inner) if hasattr(batch, "_fields") else type(batch)(inner)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        names = [field.name for field in dataclasses.fields(batch)]
        return dataclasses.replace(batch, **{n: changed(getattr(batch, n), change) for n in names})
    return batch


def count(batch: Any, name: str = "batch") -> int:
    """Examples in the batch: the length of its first tensor.

    Raises:
        ValueError: there is none.
    """
    sizes: list[int] = []
    changed(batch, lambda t: sizes.append(t.shape[0]) if t.dim() else None)
    if not sizes or not sizes[0]:
        raise ValueError(
            f"{name} must hold a tensor with the examples along its first dimension, "
            f"got {'an empty one' if sizes else type(batch).__name__}"
        )
    return sizes[0]


def taken(batch: Any, examples: int, index: Any) -> Any:
    """Some of the examples, picked from every tensor that has ``examples`` along its first dimension.

    Of a contiguous tensor they are contiguous too: a loss may say ``targets.view(-1)``.
    """

    def some(t: Tensor) -> Tensor:
        if not t.dim() or t.shape[0] != examples:
            return t
        part = t[index]
        return part.contiguous() if t.layout == torch.strided and t.is_contiguous() else part

    return changed(batch, some)


def losses_of(model: nn.Module, batch: Any, loss_fn: LossFn, examples: int) -> Tensor:
    """Checked per-example losses.

    Raises:
        ValueError: they are not of shape (B,), not finite, or not floating-point.
    """
    if isinstance(loss_fn, _Loss):
        raise ValueError(
            f"loss_fn must be a function of the model and a batch, got {type(loss_fn).__name__}, one "
            "of outputs and targets: write lambda model, batch: criterion(model(batch[0]), batch[1])"
        )
    losses = loss_fn(model, batch)
    if not isinstance(losses, Tensor) or losses.shape != (examples,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        hint = ""
        if isinstance(losses, Tensor) and losses.numel() == 1 and examples > 1:
            hint = "; a loss averaged over the batch no longer tells its examples apart (reduction='none')"
        elif isinstance(losses, Tensor) and losses.dim() > 1 and losses.shape[0] == examples:
            hint = "; average over the positions of each example (flatten(1).mean(1))"
        raise ValueError(
            f"loss_fn must return one loss an example, shape ({examples},) for {examples}, got {got}{hint}"
        )
    if not losses.is_floating_point():
        raise ValueError(f"loss_fn must return floating-point losses, got {losses.dtype}")
    bad = (~losses.detach().isfinite()).nonzero().flatten().tolist()
    if bad:
        raise NotFiniteError(
            f"loss_fn must return finite losses, got {losses[bad[0]].item()} for example {bad[0]}"
            f" and {len(bad) - 1} more"
        )
    return losses


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    check_module(model)
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that require a gradient.

    Raises:
        ValueError: there is none, or one is complex or sharded.
    """
    found: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ValueError("model must have a parameter that requires a gradient, got none")
    for name, p in found.items():
        if not p.is_floating_point():
            raise ValueError(f"parameter {name!r} must be real and floating-point, got {p.dtype}")
        if hasattr(p, "full_tensor"):
            raise ValueError(f"parameter {name!r} must be whole on every process, got a DTensor")
    return found


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, eager, with gradients; ``untouched``, and every time with the same random numbers.

    In training mode batch normalisation mixes the examples, and none has a gradient of its own.
    """
    flags = [(module, module.training) for module in model.modules()]
    devices = {p.get_device() for p in model.parameters() if p.device.type != "cpu"}
    kinds = {p.device.type for p in model.parameters() if p.device.type != "cpu"} or {"cuda"}
    again = torch.random.fork_rng(devices=sorted(devices), device_type=kinds.pop())
    with untouched(model), again, torch.inference_mode(False), torch.enable_grad(), uncompiled():
        model.eval()
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training
