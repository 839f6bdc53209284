"""Randomness that depends on a seed only, and leaves the caller's random state alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from thalweg._core.checks import check_count


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, started at ``seed``."""
    return torch.Generator().manual_seed(check_count("seed", seed, low=0))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch's global CPU stream inside the block, restore it after; None changes nothing."""
    if seed is None:
        yield
        return
    check_count("seed", seed, low=0)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed accelerators, which fork_rng(devices=[]) does not restore.
        torch.default_generator.manual_seed(seed)
        yield
