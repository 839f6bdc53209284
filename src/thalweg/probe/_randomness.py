"""The global sources of random numbers (torch, its accelerators, numpy, Python) as they were before."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

# Bytes: 624 numbers of 32 bits, and the place among them.
MERSENNE = 625 * 4


def randomness() -> Callable[[], None]:
    """Notes the state of every global generator in use; what is given back returns to it."""
    on_cpu, of_python = torch.get_rng_state(), random.getstate()
    devices = _of_accelerators()
    # Where numpy has not been imported nobody has drawn from it.
    numpy = sys.modules.get("numpy.random")
    of_numpy = None if numpy is None else _of_numpy(numpy)

    def back() -> None:
        torch.set_rng_state(on_cpu)
        random.setstate(of_python)
        for restore in devices:
            restore()
        if of_numpy is not None:
            of_numpy()

    return back


@contextmanager
def same_randomness() -> Iterator[None]:
    """Whatever is drawn inside, the global generators go on from where they were."""
    back = randomness()
    try:
        yield
    finally:
        back()


def _of_numpy(numpy: Any) -> Callable[[], None]:
    """The global generator; to set its state takes 30 us, which is saved where nothing has been drawn."""
    state = numpy.get_state(legacy=False)
    before = _memory(numpy)

    def back() -> None:
        # A second normal number that is kept may be taken without any other trace.
        if before is None or state.get("has_gauss") or _memory(numpy) != before:
            numpy.set_state(state)

    return back


def _memory(numpy: Any) -> bytes | None:
    """What the Mersenne Twister keeps; None of another generator."""
    generator = numpy.mtrand._rand._bit_generator
    if type(generator) is not numpy.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, MERSENNE)


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
