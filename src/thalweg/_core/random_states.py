"""Where random streams stand, so that a second pass over a batch can draw the same dropout masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def random_states(params: Iterable[Tensor]) -> dict[str, Tensor]:
    """Where the random streams stand: the CPU's, and that of every accelerator that holds a parameter."""
    found = {"cpu": torch.get_rng_state()}
    for device in sorted({str(p.device) for p in params if p.device.type != "cpu"}):
        found[device] = torch.get_device_module(device).get_rng_state(device)
    return found


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Let the streams go on from ``states``."""
    for device, state in states.items():
        if device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)
