from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thalweg.nn import Elephant, spread_bias_


@pytest.mark.parametrize(
    ("width", "power", "height"), [(0.1, 4, 1.0), (0.08, 8, 1.5), (0.5, 2.5, 0.7), (0.3, 6, 1.0), (1, 1, 2)]
)
def test_value_and_slope_are_the_closed_forms(width, power, height):
    x = torch.linspace(-3, 3, 400, dtype=torch.float64, requires_grad=True)  # not through 0
    y = Elephant(width, power, height)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    for point, value, found in zip(x.tolist(), y.tolist(), slope.tolist(), strict=True):
        ratio = abs(point / width)
        assert value == pytest.approx(height / (1 + ratio**power), rel=1e-12)
        expected = height * power / width * ratio ** (power - 1) / (1 + ratio**power) ** 2
        assert found == pytest.approx(-math.copysign(expected, point), rel=1e-9)


def test_the_slope_is_steepest_near_the_width_and_nowhere_else():
    x = torch.linspace(0, 1, 100_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(Elephant(0.2, 8).forward(x).sum(), x)
    steepest = slope.abs().argmax()
    assert x[steepest].item() == pytest.approx(0.2 * (7 / 9) ** (1 / 8), abs=2e-5)  # where the second is 0
    assert slope[steepest].abs().item() == pytest.approx(8 / (4 * 0.2), rel=0.03)
    assert slope[x > 0.6].abs().max() < 0.01 * slope[steepest].abs()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_no_input_however_far_makes_a_gradient_that_is_not_finite(dtype):
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.0, 4.0, 70.0, 1e4, largest, -largest], dtype=dtype, requires_grad=True)
    y = Elephant(0.08, 8)(x)
    y.sum().backward()
    assert y.dtype is dtype
    assert y.tolist() == pytest.approx([1, 0, 0, 0, 0, 0], abs=1e-13)
    assert x.grad.tolist() == pytest.approx([0] * 6, abs=1e-12)


def test_half_precision_is_the_float32_result_rounded():
    x = torch.linspace(-1, 1, 101)
    for dtype in (torch.float16, torch.bfloat16):
        half = x.to(dtype)
        assert torch.equal(Elephant(0.08, 8)(half), Elephant(0.08, 8)(half.float()).to(dtype))


def test_learned_widths_and_heights_belong_to_units_and_start_at_the_given_values():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = Elephant(0.5, 4, 2.0, units=3, dtype=torch.float64)
    assert torch.allclose(module(x), Elephant(0.5, 4, 2.0)(x), rtol=1e-12)
    with torch.no_grad():
        module.log_width.copy_(torch.tensor([0.3, 0.6, 0.9]).log())
        module.log_height.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
    for unit, (width, height) in enumerate([(0.3, 1), (0.6, 2), (0.9, 3)]):
        assert torch.allclose(module(x)[:, unit], Elephant(width, 4, height)(x[:, unit]), rtol=1e-6)

    def function(x, log_width, log_height):
        return torch.func.functional_call(module, {"log_width": log_width, "log_height": log_height}, (x,))

    free = [t.detach().clone().requires_grad_() for t in (x, module.log_width, module.log_height)]
    assert torch.autograd.gradcheck(function, free)
    twin = Elephant(units=3, dtype=torch.float64)
    twin.load_state_dict(module.state_dict())
    assert torch.equal(twin(x), module(x))


def test_biases_go_up_in_even_steps_with_the_standard_deviation_asked_for():
    layer = nn.Linear(1, 1000)
    weight = layer.weight.clone()
    assert spread_bias_(layer, 1.28) is layer
    steps = layer.bias.diff()
    assert torch.allclose(steps, steps[0].expand_as(steps), atol=1e-5)
    assert layer.bias.std(correction=0).item() == pytest.approx(1.28, rel=2e-3)
    assert layer.bias.mean().item() == pytest.approx(0, abs=1e-5)
    assert torch.equal(layer.weight, weight)


def test_a_step_on_one_input_leaves_distant_inputs_alone():
    """The tangent kernel of a spread layer, against that of ReLU: only units of small weight see both."""

    def reach(activation: nn.Module) -> float:
        torch.manual_seed(0)
        layer = spread_bias_(nn.Linear(1, 500, dtype=torch.float64), 1.28)
        model = nn.Sequential(layer, activation, nn.Linear(500, 1, bias=False, dtype=torch.float64))
        gradients = []
        for point in (0.0, 0.5):
            out = model(torch.tensor([[point]], dtype=torch.float64))
            gradients.append(
                torch.cat([g.flatten() for g in torch.autograd.grad(out, list(model.parameters()))])
            )
        here, there = gradients
        return (here @ there / (here @ here)).abs().item()

    assert reach(Elephant(0.08, 8)) < 0.25
    assert reach(nn.ReLU()) > 0.5


def test_what_is_made_on_the_meta_device_can_be_filled():
    layer = Elephant(0.2, height=3.0, units=4, device="meta").to_empty(device="cpu")
    layer.reset_parameters()
    assert layer.log_width.tolist() == pytest.approx([math.log(0.2)] * 4)
    assert layer.log_height.tolist() == pytest.approx([math.log(3)] * 4)


def test_elephant_refuses():
    with pytest.raises(ValueError, match=r"width must be in \(0, inf\), got 0"):
        Elephant(0)
    with pytest.raises(ValueError, match=r"power must be in \[1, inf\), got 0\.5"):
        Elephant(power=0.5)
    with pytest.raises(ValueError, match=r"height must be in \(0, inf\), got -1"):
        Elephant(height=-1)
    with pytest.raises(ValueError, match="units must be an integer >= 1, got 0"):
        Elephant(units=0)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 3\), got \(2, 4\)"):
        Elephant(units=3)(torch.ones(2, 4))
    with pytest.raises(ValueError, match="layer must have a bias"):
        spread_bias_(nn.Linear(2, 3, bias=False), 1.0)
