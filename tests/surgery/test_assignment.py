"""Assignments are as good as the plain solver's, whatever is taken from rows and columns before."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from thalweg.surgery._assignment import best


def trained(n: int) -> np.ndarray:
    """Units of different lengths, most of which have a counterpart: what matching meets."""
    source = np.random.default_rng(n)
    shared = source.standard_normal((n, 40))
    sides = [shared + 0.7 * source.standard_normal((n, 40)) for _ in range(2)]
    lengths = source.random((n, 1)) ** 2
    return (lengths * sides[0]) @ (lengths[::-1] * sides[1][source.permutation(n)]).T


PROBLEMS = {
    "few units": trained(9),
    "units for the first step": trained(80),
    "units for both steps": trained(257),
    "no structure": np.random.default_rng(0).standard_normal((220, 220)),
    "all alike": np.ones((210, 210)),
    "ties": np.random.default_rng(1).integers(0, 3, (230, 230)).astype(float),
    "some rows nothing": trained(240) * (np.arange(240) % 3 > 0)[:, None],
    "too large for float32": 1e200 * trained(201),
    "too small for float32": 1e-200 * trained(201),
    "one entry above all": trained(205) + 1e12 * (np.arange(205**2).reshape(205, 205) == 999),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_sum_is_that_of_the_plain_solver(name):
    value = PROBLEMS[name]
    order = best(torch.from_numpy(value.copy())).numpy()
    rows = np.arange(len(value))
    assert sorted(order) == list(rows)
    plain = linear_sum_assignment(value, maximize=True)[1]
    assert value[rows, order].sum() == pytest.approx(value[rows, plain].sum(), rel=1e-12, abs=0)
