"""Which dimension of a sequence's activations is time: the last behind a 1-D convolution, else the second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized


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


@contextmanager
def as_sequences(model: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """Gives a function from what the model is computing to (batch, time, units); other shapes stay.

    (batch, channels, time) is known by the layer with weights that ran last, a 1-D convolution with so many
    channels, or twice as many, which a gate halves.
    """
    last: list[nn.Module] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        last[:] = [module]

    def arranged(values: Tensor) -> Tensor:
        if values.dim() != 3 or not last or not isinstance(last[0], nn.Conv1d | nn.ConvTranspose1d):
            return values
        channels = last[0].out_channels
        return values.movedim(1, 2) if values.shape[1] in (channels, channels / 2) else values

    makers = with_weights(model).values()
    handles = [module.register_forward_hook(note) for module in makers]
    try:
        yield arranged
    finally:
        for handle in handles:
            handle.remove()
