"""Weight Standardization: its formula, what it makes invariant, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thalweg.nn import WeightStandardization, convert


def standardised(eps=1e-5, correction=0):
    torch.manual_seed(0)
    return WeightStandardization.of(nn.Conv2d(4, 6, 3, groups=2).double(), eps, correction)


@pytest.mark.parametrize("correction", [0, 1])
def test_every_filter_is_the_formula(correction):
    layer = standardised(1e-2, correction)
    raw = layer.parametrizations.weight.original
    for before, after in zip(raw, layer.weight, strict=True):
        values = before.flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / (len(values) - correction)
        expected = [(v - mean) / (variance + 1e-2) ** 0.5 for v in values]
        assert after.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_filters_have_mean_0_and_variance_1_and_the_bias_is_left_alone():
    layer = standardised()
    flat = layer.weight.flatten(1)
    assert torch.allclose(flat.mean(1), torch.zeros(6).double(), atol=1e-12)
    # The root holds eps beside a variance of about 1 / 54.
    assert torch.allclose(flat.var(1, correction=0), torch.ones(6).double(), atol=2e-3)
    assert {name for name, _ in layer.named_parameters()} == {"bias", "parametrizations.weight.original"}


def test_scale_and_shift_of_a_filter_change_nothing_and_the_gradient_has_no_part_there():
    layer = standardised(1e-30)
    raw = layer.parametrizations.weight.original
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    before = layer(x)
    (gradient,) = torch.autograd.grad((before * before.detach().sin()).sum(), raw)
    size = gradient.abs().max()
    assert gradient.flatten(1).sum(1).abs().max() < 1e-12 * size
    assert (gradient * raw).flatten(1).sum(1).abs().max() < 1e-12 * size
    with torch.no_grad():
        raw.mul_(torch.arange(1.0, 7).view(-1, 1, 1, 1)).add_(torch.arange(6.0).view(-1, 1, 1, 1))
    assert torch.allclose(layer(x), before, atol=1e-10)


def test_gradient_equals_finite_differences():
    weight = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WeightStandardization(0.1), (weight,))


def test_half_precision_weights_are_standardised_in_float32():
    weight = (torch.randn(3, 50) * 1e-3 + 10).to(torch.bfloat16)
    exact = WeightStandardization()(weight.double())
    found = WeightStandardization()(weight)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.double(), exact, atol=0.02)


def test_what_is_assigned_is_stored_and_a_conversion_starts_from_the_old_weight():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.Conv2d(3, 2, 3))
    made = convert(model, {nn.Conv2d: WeightStandardization.of}, skip=["2"])
    assert torch.equal(made[0].parametrizations.weight.original, model[0].weight)
    assert not hasattr(made[2], "parametrizations") and not hasattr(model[0], "parametrizations")
    made[0].weight = torch.ones(3, 1, 3, 3)
    assert torch.equal(made[0].parametrizations.weight.original, torch.ones(3, 1, 3, 3))


def test_refusals():
    with pytest.raises(
        ValueError, match=r"module '0' \(Conv2d\): layer must have filters of at least 2 numbers"
    ):
        convert(nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)), {nn.Conv2d: WeightStandardization.of})
    with pytest.raises(ValueError, match="one of Linear, Conv1d, Conv2d, Conv3d; got ConvTranspose2d"):
        WeightStandardization.of(nn.ConvTranspose2d(2, 2, 3))
    with pytest.raises(ValueError, match=r"eps must be in \(0, inf\), got 0"):
        WeightStandardization(0)
    with pytest.raises(ValueError, match="correction must be one of 0, 1; got 2"):
        WeightStandardization(correction=2)
