"""Which dimension of activations holds the units: what the layer that made them says of its size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import is_parametrized

# What a layer calls the number of its units: convolutions, nn.Linear, and the Conv1D of transformers.
_SIZES = ("out_channels", "out_features", "nf")


def with_weights(model: nn.Module) -> dict[str, nn.Module]:
    """Name to module: those that take hooks (scripted ones do not) and own a weight matrix or kernel.

    One that computes its weight (spectral or weight normalisation) owns it, not the part that computes it.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if (is_parametrized(module) or any(p.dim() > 1 for p in module.parameters(recurse=False)))
        and "parametrizations" not in name.split(".")
        and not isinstance(module, torch.jit.ScriptModule)
    }


def _units_at(shape: torch.Size, maker: nn.Module, made: torch.Size) -> int | None:
    """The dimension of a layer's units in what is computed from ``made``, which it returned, if that tells.

    It has as many entries as the layer has units, or half as many, behind a gate, and stands where the layer
    puts it, or at the other end if nothing else has changed.
    """
    sizes = [size for size in (getattr(maker, name, None) for name in _SIZES) if isinstance(size, int)]
    convolved = isinstance(maker, _ConvNd)
    places = made[2:] if convolved else made[1:-1]
    own = 1 if convolved else -1
    for times in (1, 2):
        if len(shape) == len(made) and times * shape[own] in sizes:
            return own
        if convolved and (*shape[1:-1], times * shape[-1]) in [(*places, size) for size in sizes]:
            return -1
        flat = (*places,) if len(shape) == len(made) else (places.numel(),)
        if (times * shape[1], *shape[2:]) in [(size, *flat) for size in sizes]:
            return 1
    return None


@contextmanager
def as_sequences(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives a function from what the model is computing to (batch, time, units) or (batch, units, ...).

    Of three dimensions the last one comes to hold the units, of more the second: those of the layer with
    weights that ran last. A 1-D convolution makes (batch, channels, time), and a linear layer, in an image
    model of one kind, (batch, height, width, units). What that layer does not explain stays as it is.
    """
    last: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        last[:] = [(module, output.shape)] if isinstance(output, Tensor) else []

    def arranged(values: Tensor) -> Tensor:
        if values.dim() < 3 or not last:
            return values
        place, wanted = _units_at(values.shape, *last[0]), -1 if values.dim() == 3 else 1
        return values if place is None else values.movedim(place, wanted)

    makers = with_weights(model).values()
    handles = [module.register_forward_hook(note) for module in makers]
    try:
        yield arranged
    finally:
        for handle in handles:
            handle.remove()
