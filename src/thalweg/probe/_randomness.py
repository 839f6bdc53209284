"""The global sources of random numbers (torch, its accelerators, numpy, Python) as they were before."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch


def randomness() -> Callable[[], None]:
    """Notes the state of every global generator in use; what is given back returns to it."""
    on_cpu, of_python = torch.get_rng_state(), random.getstate()
    devices = _of_accelerators()
    # Where numpy has not been imported nobody has drawn from it.
    numpy = sys.modules.get("numpy.random")
    of_numpy = None if numpy is None else numpy.get_state()

    def back() -> None:
        torch.set_rng_state(on_cpu)
        random.setstate(of_python)
        for restore in devices:
            restore()
        if numpy is not None:
            numpy.set_state(of_numpy)

    return back


@contextmanager
def same_randomness() -> Iterator[None]:
    """Whatever is drawn inside, the global generators go on from where they were."""
    back = randomness()
    try:
        yield
    finally:
        back()


def _of_accelerators() -> list[Callable[[], None]]:
    kind = torch.accelerator.current_accelerator()
    if kind is None:
        return []
    device = torch.get_device_module(kind)
    # A generator that has not been made yet has nothing to lose, and making it would take memory.
    if not getattr(device, "is_initialized", lambda: True)():
        return []
    if kind.type == "mps":
        return [partial(device.set_rng_state, device.get_rng_state())]
    states = [device.get_rng_state(index) for index in range(device.device_count())]
    return [partial(device.set_rng_state, state, index) for index, state in enumerate(states)]
