"""The global generators go on from where they were, whatever is drawn meanwhile."""

import random

import numpy as np
import pytest
import torch

from thalweg.probe._randomness import same_randomness

DRAWS = {
    "nothing": lambda: None,
    "a number": np.random.rand,
    "a normal number": np.random.randn,
    "a permutation": lambda: np.random.permutation(7),
    "a new seed": lambda: np.random.seed(1),
    "another generator": lambda: np.random.set_bit_generator(np.random.MT19937(1)),
    "python's": random.random,
    "torch's": lambda: torch.rand(3),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=list(DRAWS))
@pytest.mark.parametrize("normals", [0, 1])
@pytest.mark.parametrize("numbers", [0, 1, 623, 624])
def test_the_next_draws_are_those_that_would_have_come(numbers, normals, draw):
    """Of normal numbers numpy makes two at a time, and keeps the second."""

    def after(inside):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        np.random.rand(numbers), np.random.randn(normals)
        with same_randomness():
            inside()
        return random.random(), *np.random.randn(3), *np.random.rand(2), *torch.rand(2).tolist()

    own = np.random.get_bit_generator()
    try:
        assert after(draw) == after(lambda: None)
    finally:
        np.random.set_bit_generator(own)
