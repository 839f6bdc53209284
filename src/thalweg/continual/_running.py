"""What is known of one layer's units as training goes on: utility, mean feature, age."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thalweg.continual._chain import Link
from thalweg.continual._utility import by_unit, instantaneous_utility, wide

TENSORS = ("utility", "activation", "age")


class Units:
    """Running means over a layer's units, and how many of them are due to be renewed.

    Attributes:
        utility, activation: running means without correction, (units,), in at least float32.
        age: steps since each unit was made, (units,), on the CPU, so that counting waits for no accelerator.
        owed: units that are due, with the fraction left over.
        seen: what the reader read since the last step.
    """

    def __init__(self, link: Link, decay: float):
        self.link, self.decay, self.owed = link, decay, 0.0
        self.utility = torch.zeros_like(wide(link.maker.weight.new_empty(link.units)))
        self.activation = self.utility.clone()
        self.age = torch.zeros(link.units, dtype=torch.int64)
        self.seen: list[Tensor] = []
        self.handle = link.reader.register_forward_pre_hook(self._listen)

    def _listen(self, reader: nn.Module, inputs: tuple[Any, ...]) -> None:
        if reader.training and torch.is_grad_enabled():
            self.seen.append(inputs[0].detach())

    def corrected(self, tensor: Tensor) -> Tensor:
        """A running mean without the weight of its first value, zero."""
        return tensor / (1 - self.decay ** self.age.double()).to(tensor)

    def read(self) -> Tensor:
        """What was read since the last step, as (batch x positions, units)."""
        rows = [by_unit(seen, self.link).to(self.utility) for seen in self.seen]
        return torch.cat(rows) if rows else self.utility.new_empty(0, self.link.units)

    def follow(self, mean: Tensor) -> Tensor:
        """Take in the mean of what was read, and let go of that; the running mean, corrected."""
        self.seen.clear()
        self.age += 1
        self.activation.lerp_(mean, 1 - self.decay)
        return self.corrected(self.activation)

    def judge(self, kind: str, size: Tensor, generator: torch.Generator | None) -> None:
        """Take in the utility of this step, ``size`` being the mean that it is made of."""
        now = instantaneous_utility(kind, self.link, size, generator)
        self.utility.lerp_(now.to(self.utility), 1 - self.decay)

    def due(self, rate: float, maturity: int) -> tuple[int, ...]:
        """The units to be renewed, least useful first, of those older than ``maturity``."""
        eligible = (self.age > maturity).nonzero().flatten()
        self.owed += rate * len(eligible)
        count = math.floor(self.owed)
        if not count:
            return ()
        utility = self.corrected(self.utility)[eligible.to(self.utility.device)]
        order = utility.sort(stable=True).indices[:count]
        return tuple(eligible[order.cpu()].tolist())

    def forget(self, indices: Tensor) -> None:
        """These units are new."""
        self.utility.index_fill_(0, indices, 0)
        self.activation.index_fill_(0, indices, 0)
        self.age.index_fill_(0, indices.cpu(), 0)
        self.owed -= len(indices)

    def state(self) -> dict[str, Any]:
        """Tensors and numbers only."""
        return {**{key: getattr(self, key).clone() for key in TENSORS}, "owed": self.owed}

    def check(self, name: str, state: Mapping[str, Any]) -> None:
        """Refuse the state of other units."""
        for key in TENSORS:
            shape = tuple(state[key].shape) if isinstance(state.get(key), Tensor) else None
            if shape != (self.link.units,) or "owed" not in state:
                raise ValueError(
                    f"state_dict must hold {key!r} of shape ({self.link.units},) and 'owed' for {name!r}, "
                    f"got shape {shape} and {sorted(state)}"
                )

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checked state."""
        for key in TENSORS:
            getattr(self, key).copy_(state[key])
        self.owed = float(state["owed"])
        self.seen.clear()
