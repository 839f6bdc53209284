"""Products that autocast is not to round: those of statistics, singular vectors, systems to solve."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Where ``tensor`` is, products keep the type of what goes into them, also under autocast."""
    # The meta device, on which shapes alone are computed, has no autocast to switch off.
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
