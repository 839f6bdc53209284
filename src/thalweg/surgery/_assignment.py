"""The assignment problem of matching: an exact solution, sooner where approximate prices are found first."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

SMALL, LARGE = 64, 200  # units from which the two steps before a solution are worth their time
WARMTH, ROUNDS = 0.07, 20


def best(value: Tensor) -> Tensor:
    """For each row its column, so that the entries have the largest sum."""
    cost = -value.numpy()
    # Any number may be taken from a row or a column. The closer they are to the problem's own prices, the
    # fewer paths the solver tries: 512 units of trained weights take 13 ms with the first step, 5 with both.
    if len(cost) >= SMALL:
        _cheapest_to_zero(cost)
    if len(cost) >= LARGE:
        cost -= _prices(cost)
        _cheapest_to_zero(cost)
    return torch.from_numpy(linear_sum_assignment(cost)[1])


def _cheapest_to_zero(cost: np.ndarray) -> None:
    cost -= cost.min(1, keepdims=True)
    cost -= cost.min(0, keepdims=True)


def _prices(cost: np.ndarray) -> np.ndarray:
    """What a column costs, nearly: of the assignment softened by an entropy, by Sinkhorn's iteration."""
    soft = torch.from_numpy(cost).float()
    scale = WARMTH * soft.std().item()
    if not 0 < scale < math.inf:
        return np.zeros(len(cost))
    kernel = soft.mul_(-1 / scale).exp_()
    column = torch.ones(len(cost))
    for _ in range(ROUNDS):
        column = (kernel.T @ (kernel @ column).reciprocal_()).reciprocal_()
    prices = scale * column.log().numpy()
    return prices if np.isfinite(prices).all() else np.zeros(len(cost))
