"""Units of 1-D convolutions are their channels, although (batch, channels, time) looks like a sequence."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import (
    dormant_neurons,
    feature_diversity,
    feature_ranks,
    hub_neurons,
    saturated_units,
)

X = torch.randn(6, 3, 9, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    def __init__(self, conv, norm):
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x):
        return functional.relu(self.norm(self.conv(x)))


class Turned(Functional):
    """Turns to (batch, time, channels) before its activation."""

    def forward(self, x):
        return functional.relu(self.conv(x).transpose(1, 2))


def build(kind):
    torch.manual_seed(0)
    conv, norm = nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5).eval()
    with torch.no_grad():
        conv.weight[2], conv.bias[2] = 0, -1  # a dead channel
    if kind == "modules":
        return nn.Sequential(conv, norm, nn.ReLU()).eval(), "2"
    return {"functions": Functional, "turned": Turned}[kind](conv, norm).eval(), "conv"


@pytest.mark.parametrize("kind", ["modules", "functions", "turned"])
def test_units_are_channels(kind):
    model, layer = build(kind)
    acts = model(X).detach()
    rows = (acts.transpose(1, 2) if kind != "turned" else acts).flatten(0, 1)  # a position, its channels
    mean = rows.abs().mean(0)
    torch.testing.assert_close(dormant_neurons(model, X).scores[layer], mean / mean.mean())
    assert dormant_neurons(model, X).dead[layer] == 0.2
    assert hub_neurons(model, X).scores[layer].shape == (5,)
    torch.testing.assert_close(saturated_units(model, X).flat[layer], (rows == 0).double().mean(0))
    ranks = feature_ranks(model, X)[layer]
    values = torch.linalg.svdvals(rows.double())
    assert (ranks.rows, ranks.columns) == (42, 5)
    assert ranks.stable_rank == pytest.approx((values / values[0]).square().sum().item(), rel=1e-5)
    assert feature_diversity(model, X)[layer].constant == pytest.approx(0.2)


def test_layers_may_be_named_and_the_dimension_told():
    model, layer = build("modules")
    expected = dormant_neurons(model, X).scores[layer]
    for options in ({"layers": ["2"]}, {"layers": ["2"], "unit_dim": 1}, {"unit_dim": 1}):
        torch.testing.assert_close(dormant_neurons(model, X, **options).scores["2"], expected)
    assert dormant_neurons(model, X, unit_dim=2).scores["2"].shape == (7,)


def test_a_gate_halves_the_channels():
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.GLU(dim=1), nn.Conv1d(4, 2, 1))
    assert dormant_neurons(model, X).scores["1"].shape == (4,)
    assert dormant_neurons(model, X, inputs_of=["2"]).scores["2"].shape == (4,)


def test_behind_a_linear_layer_the_last_dimension_is_that_of_the_units():
    model = nn.Sequential(nn.Conv1d(3, 7, 3), nn.Linear(7, 4), nn.ReLU())  # (6, 7, 7): one channel a row
    assert dormant_neurons(model, X).scores["2"].shape == (4,)
