"""The arguments of a model's call, as a probe takes a batch."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

__all__ = ["as_batch"]


def as_batch(model: nn.Module, positional: tuple, keywords: dict[str, Any]) -> Any:
    """The arguments of a call, all positional or all by keyword."""
    if positional and keywords:
        return dict(inspect.signature(model.forward).bind(*positional, **keywords).arguments)
    return positional or keywords
