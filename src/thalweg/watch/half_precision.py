"""Models whose weights are in half precision, or some of them, and that run in a region of autocast alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

Region = tuple[str, torch.dtype]
HALVES = (torch.float16, torch.bfloat16)


def region_around(output: Tensor) -> Region | None:
    """Device and type of the autocast region in which ``output`` has just been made; None outside of one."""
    kind = output.device.type
    return (kind, torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None


def as_called(model: nn.Module | None, region: Region | None) -> AbstractContextManager[object]:
    """The region in which the model was called, if its weights ask for it; else their own types are finer."""
    if model is None or region is None or not any(p.dtype in HALVES for p in model.parameters()):
        return nullcontext()
    # What it kept of weights would be of those before the step.
    return torch.autocast(region[0], dtype=region[1], cache_enabled=False)
