"""Make chosen units new: fresh weights in, none out, and nothing left of them in norms and optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.continual._chain import Link
from thalweg.continual._utility import outgoing, wide

Init = str | Callable[[Tensor], Any]
INITS = ("default", "kaiming", "lecun", "xavier")


def bound(init: str, weight: Tensor) -> float:
    """Half-width of the uniform distribution of incoming weights."""
    fan_in = weight[0].numel()
    fan_out = weight.shape[0] * weight[0, 0].numel()
    square = {
        "default": 1 / fan_in,
        "kaiming": 6 / fan_in,
        "lecun": 3 / fan_in,
        "xavier": 6 / (fan_in + fan_out),
    }
    return math.sqrt(square[init])


def draw(weight: Tensor, count: int, init: Init, generator: torch.Generator | None) -> Tensor:
    """Incoming weights of ``count`` new units of the layer with ``weight``."""
    dtype = torch.promote_types(weight.dtype, torch.float32)
    if callable(init):
        whole = torch.empty(weight.shape, dtype=dtype, device=weight.device)
        init(whole)
        return whole[:count]
    device = generator.device if generator is not None else weight.device
    fresh = torch.empty((count, *weight.shape[1:]), dtype=dtype, device=device)
    limit = bound(init, weight)
    return fresh.uniform_(-limit, limit, generator=generator)


@dataclass(frozen=True)
class Renewal:
    """Units of one layer that are to become new.

    Attributes:
        indices: of the units, (count,), on the device of the weights.
        fresh: incoming weights, (count, ...).
        mean: running mean of the units' features, (count,), which the reader's bias takes over.
    """

    link: Link
    indices: Tensor
    fresh: Tensor
    mean: Tensor

    def places(self) -> list[tuple[Tensor, int, Tensor]]:
        """Each parameter with entries of these units, the dimension that they lie along, and which."""
        maker, reader, wide_by = self.link.maker, self.link.reader, self.link.columns_per_unit
        columns = self.indices[:, None] * wide_by + torch.arange(wide_by, device=self.indices.device)
        found = [(maker.weight, 0, self.indices), (reader.weight, 1, columns.flatten())]
        own = [maker.bias, *(p for norm in self.link.norms for p in (norm.weight, norm.bias))]
        return found + [(p, 0, self.indices) for p in own if isinstance(p, Tensor)]

    def apply(self) -> None:
        """Write the units; the reader keeps the mean of what it read."""
        (made, _, units), (read, _, columns), *_ = self.places()
        maker, reader = self.link.maker, self.link.reader
        if reader.bias is not None:
            moved = outgoing(self.link).sum(2)[:, units] @ self.mean.to(wide(reader.weight))
            reader.bias.add_(moved.to(reader.bias))
        made.index_copy_(0, units, self.fresh.to(made))
        if maker.bias is not None:
            maker.bias.index_fill_(0, units, 0)
        read.index_fill_(1, columns, 0)
        for norm in self.link.norms:
            for name, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
                entry = getattr(norm, name, None)
                if isinstance(entry, Tensor):
                    entry.index_fill_(0, units, value)


def states_to_reset(
    optimizer: torch.optim.Optimizer, renewal: Renewal, moments: Collection[str] | None
) -> list[tuple[Tensor, int, Tensor]]:
    """The optimizer's state tensors that hold entries of these units.

    Raises:
        ValueError: a state tensor has another shape than its parameter or holds codes, so that no entry is
            a unit's own.
    """
    found = []
    for p, dim, indices in renewal.places():
        for name, value in optimizer.state.get(p, {}).items():
            if not isinstance(value, Tensor) or (moments is not None and name not in moments):
                continue
            if value.shape == p.shape and value.is_floating_point():
                found.append((value, dim, indices.to(value.device)))
            elif value.numel() > 1:
                raise ValueError(
                    f"optimizer state {name!r} must be of floating point and have its parameter's shape "
                    f"{tuple(p.shape)} to be reset, got {value.dtype} and {tuple(value.shape)}: name in "
                    "moments those to reset"
                )
    return found


def check_trained(link: Link, optimizer: torch.optim.Optimizer) -> None:
    """Refuse layers whose weights the optimizer does not train."""
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    ends: tuple[tuple[str, nn.Module], ...]
    ends = ((link.maker_name, link.maker), (link.reader_name, link.reader))
    for name, layer in ends:
        weight = layer.weight
        if id(weight) not in trained or not weight.requires_grad:
            raise ValueError(f"module {name!r} must be trained by the optimizer, got a weight that is not")
