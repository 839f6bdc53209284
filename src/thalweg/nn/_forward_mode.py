"""Whether derivatives are being carried forward, where a changed backward pass has no part."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def in_forward_mode() -> bool:
    """Inside of ``torch.func.jvp`` and its like; never in what torch.compile traces."""
    return not torch.compiler.is_compiling() and forward_ad._current_level >= 0
