from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import saturated_units
from thalweg.tasks import GPT

# Closed forms of the derivative, of an input.
DERIVATIVES = {
    nn.Tanh: lambda z: 1 - z.tanh() ** 2,
    nn.Sigmoid: lambda z: z.sigmoid() * (1 - z.sigmoid()),
    nn.ReLU: lambda z: (z > 0).double(),
    nn.Softplus: torch.sigmoid,
    nn.GELU: lambda z: 0.5 * (1 + torch.erf(z / 2**0.5)) + z * torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5,
    nn.SiLU: lambda z: z.sigmoid() * (1 + z * (1 - z.sigmoid())),
}


@pytest.mark.parametrize("activation", DERIVATIVES)
def test_flat_share_equals_that_of_the_closed_form(activation):
    torch.manual_seed(0)
    z = 6 * torch.randn(300, 7, dtype=torch.float64)
    found = saturated_units(nn.Sequential(nn.Identity(), activation()), z, slope=0.05, share=0.4)
    flat = (DERIVATIVES[activation](z).abs() <= 0.05).double().mean(0)
    torch.testing.assert_close(found.flat["1"], flat)
    assert found.fraction["1"] == (flat >= 0.4).double().mean().item() == found.total


def test_a_tanh_unit_is_flat_beyond_its_known_point():
    z = torch.tensor([[3.34, 3.35, -3.35, 0.0]], dtype=torch.float64)
    assert saturated_units(nn.Sequential(nn.Identity(), nn.Tanh()), z).flat["1"].tolist() == [0, 1, 1, 0]


def test_dead_bent_and_linear_units_of_a_relu():
    z = torch.tensor([[-1.0, -1.0, 1.0, 2.0], [-2.0, 1.0, 3.0, 4.0]])
    found = saturated_units(nn.Sequential(nn.Identity(), nn.ReLU(inplace=True)), z)
    assert found.flat["1"].tolist() == [1, 0.5, 0, 0]
    assert found.fraction == {"1": 0.25} and found.total == 0.25
    assert found.linear == {"1": 0.5} and found.total_linear == 0.5


def test_a_convolutional_unit_is_a_channel_over_all_places():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh())
    with torch.no_grad():
        model[0].weight *= 8
    x = torch.randn(5, 1, 6, 6)
    slopes = 1 - model(x).detach() ** 2
    torch.testing.assert_close(
        saturated_units(model, x, slope=0.1).flat["1"], (slopes <= 0.1).double().mean((0, 2, 3))
    )


def test_feed_forward_units_of_a_transformer():
    model = GPT(11, context=6, layers=2, heads=2, width=8, seed=0)
    block = model.blocks[1].feed_forward
    with torch.no_grad():
        block.expand.bias[:5] = -30
    found = saturated_units(model, torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0)))
    assert found.fraction == {
        "blocks.0.feed_forward.activation": 0,
        "blocks.1.feed_forward.activation": 5 / 32,
    }


def test_a_function_call_is_said_with_the_layer_before_it():
    torch.manual_seed(0)

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(functional.tanh(self.hidden(x)))

    model, x = Functional(), 5 * torch.randn(20, 3)
    slopes = 1 - model.hidden(x).detach().tanh() ** 2
    found = saturated_units(model, x, layers={"hidden": torch.tanh}, slope=0.1)
    torch.testing.assert_close(found.flat["hidden"], (slopes <= 0.1).double().mean(0))


def test_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.PReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    before = torch.get_rng_state()
    saturated_units(model, torch.ones(4, 3))
    assert all(p.grad is None for p in model.parameters()) and model[2].training
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (
            nn.Sequential(nn.Linear(2, 2), nn.GLU()),
            {"layers": ["1"]},
            r"act on each unit alone, got '1' \(GLU\)",
        ),
        (nn.Linear(2, 2), {}, "no activation modules"),
        (nn.Linear(2, 2), {"layers": {"": lambda z: z[:1]}}, r"must keep the shape \(3, 2\), got \(1, 2\)"),
        (nn.ReLU(), {"slope": 0}, "slope must be in"),
        (nn.ReLU(), {"share": 0}, r"share must be in \(0, 1\], got 0"),
    ],
)
def test_saturated_units_refuses(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        saturated_units(model, torch.ones(3, 2), **arguments)
