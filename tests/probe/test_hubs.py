from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.probe import dormant_neurons, hub_neurons


def test_hubs_are_named_strongest_first_with_what_they_carry():
    model = nn.Sequential(nn.Identity(), nn.ReLU())
    activity = torch.tensor([1.0, 30.0, 1.0, 1.0, 60.0, 1.0, 1.0, 1.0, 1.0, 3.0])
    found = hub_neurons(model, activity.repeat(8, 1), factor=2.5)
    assert found.units == {"1": (4, 1)}
    assert found.carried["1"] == pytest.approx(0.9)
    assert found.active_units["1"] == pytest.approx(100**2 / (30**2 + 60**2 + 3**2 + 7))
    assert hub_neurons(model, activity.repeat(8, 1)).units == {"1": (4,)}


def test_equal_units_all_count_as_active_and_none_in_a_silent_layer():
    equal = nn.Sequential(nn.Identity(), nn.Tanh())
    assert hub_neurons(equal, torch.ones(4, 6)).active_units["1"] == pytest.approx(6)
    silent = hub_neurons(nn.Sequential(nn.Identity(), nn.ReLU()), -torch.ones(4, 6))
    assert (silent.units["1"], silent.carried["1"], silent.active_units["1"]) == ((), 0.0, 0.0)


def test_scores_are_those_of_dormancy():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU())
    x = torch.randn(6, 1, 7, 7)
    assert torch.equal(hub_neurons(model, x).scores["1"], dormant_neurons(model, x).scores["1"])


@pytest.mark.parametrize("factor", [1, 0.5, math.inf, math.nan])
def test_factor_is_above_one(factor):
    with pytest.raises(ValueError, match=r"factor must be in \(1, inf\)"):
        hub_neurons(nn.ReLU(), torch.ones(2, 2), factor=factor)
