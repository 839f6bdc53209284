"""A supervised task: what to learn from, what to be judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Split"]


@dataclass(frozen=True, eq=False)
class Split:
    """Training and test examples of one classification task.

    Attributes:
        train: inputs, whose first dimension counts examples, and int64 targets in [0, ``classes``).
        test: the same for the held-out examples.
        classes: number of classes.
        name: what to call the task in tables and plots.
    """

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int
    name: str

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Split:
        """The same task on ``device``; inputs that are floating point are cast to ``dtype``."""

        def move(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            inputs, targets = pair
            return inputs.to(device, dtype if inputs.is_floating_point() else None), targets.to(device)

        return replace(self, train=move(self.train), test=move(self.test))
