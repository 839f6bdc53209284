"""normalize_and_project: scale invariance, norms that stay, SGD with the rate that growing weights had."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg import optim
from thalweg.nn import (
    NormalizedLayer,
    WeightStandardization,
    normalize_and_project,
    project_after_step,
    project_weights,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


def images():
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(16, 3)).double()


def layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, NormalizedLayer)}


def loss_of(model, x):
    out = model(x)
    return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum()


X, PIXELS = torch.randn(7, 5).double(), torch.randn(7, 1, 6, 6).double()


@pytest.mark.parametrize(("make", "x"), [(network, X), (images, PIXELS)])
def test_output_depends_on_directions_alone(make, x):
    made = normalize_and_project(make(), eps=1e-12)
    for module in made.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-12  # the model's own as well
    assert len(layers(made)) == 2
    weights = [layer.layer.weight for layer in layers(made).values()]
    before, first = made(x), torch.autograd.grad(loss_of(made, x), weights)
    with torch.no_grad():
        weights[0].mul_(3), weights[1].mul_(0.25)
    assert torch.allclose(made(x), before, atol=1e-9)
    for w, g, scaled, c in zip(
        weights, first, torch.autograd.grad(loss_of(made, x), weights), (3, 0.25), strict=True
    ):
        assert torch.allclose(scaled, g / c, atol=1e-9 * g.abs().max())
        assert abs((w * scaled).sum()) < 1e-9 * w.norm() * scaled.norm()


def test_where_normalisations_go():
    made = normalize_and_project(network())
    assert list(layers(made)) == ["0", "2"] and isinstance(made[5], nn.Linear)
    assert isinstance(made[0].norm, nn.LayerNorm) and isinstance(made[2].norm, nn.Identity)
    assert made[0].layer.bias is None and made[2].layer.bias is None and made[5].bias is not None
    assert isinstance(normalize_and_project(network(), norm="rms")[0].norm, nn.RMSNorm)
    norm = normalize_and_project(images())[0].norm
    assert (norm.num_groups, norm.num_channels) == (1, 4)
    assert list(layers(normalize_and_project(network(), readout=True))) == ["0", "2", "5"]
    named = normalize_and_project(network(), layers=["0"])
    assert list(layers(named)) == ["0"]


def test_the_first_function_is_the_layer_normalised_and_the_model_is_left_alone():
    model = network()
    before = copy.deepcopy(model.state_dict())
    made = normalize_and_project(model)
    hidden = nn.functional.layer_norm(X @ model[0].weight.T, (8,))
    hidden = model[4](model[3](hidden.relu() @ model[2].weight.T))
    assert torch.allclose(made(X), model[5](hidden))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def trained(model, optimizer, steps, before_step=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), torch.arange(7) % 3).backward()
        before_step()
        optimizer.step()


@pytest.mark.parametrize("make", [torch.optim.Adam, optim.AdamW], ids=["torch", "thalweg"])
def test_norms_stay_over_steps_and_moments_are_left_alone(make):
    made = normalize_and_project(network().float(), gains="projected").double()
    optimizer = make(made.parameters(), lr=0.1)
    handle = project_after_step(made, optimizer)
    trained(made, optimizer, 20)
    for layer in layers(made).values():
        assert layer.layer.weight.norm().item() == pytest.approx(layer.radius.item(), rel=1e-6)
    # Gains of 1 and offsets of 0: the root of their number, together.
    assert torch.cat([made[3].weight, made[3].bias]).norm().item() == pytest.approx(6**0.5, rel=1e-6)
    handle.remove()
    trained(made, optimizer, 1)
    assert made[0].layer.weight.norm().item() != pytest.approx(made[0].radius.item(), rel=1e-4)


def test_projection_every_third_step():
    made = normalize_and_project(network())
    optimizer = torch.optim.Adam(made.parameters(), lr=0.1)
    project_after_step(made, optimizer, every=3)
    drift = []
    for _ in range(6):
        trained(made, optimizer, 1)
        drift.append(abs(made[0].layer.weight.norm() / made[0].radius - 1).item() > 1e-6)
    assert drift == [True, True, False] * 2


def test_growing_weights_under_sgd_are_the_projected_ones_with_a_rate_of_their_own():
    """W turns by lr / |W|^2, so rho^2 / |W|^2 times the rate, layer by layer, follows it on the sphere."""
    grown = normalize_and_project(network(), eps=1e-12)
    grown[3].eps = 1e-12
    held = copy.deepcopy(grown)
    free = torch.optim.SGD(grown.parameters(), lr=0.5)
    weights = {id(layer.layer.weight) for layer in layers(held).values()}
    groups = [{"params": [p for p in held.parameters() if id(p) not in weights]}]
    groups += [{"params": [layer.layer.weight]} for layer in layers(held).values()]
    optimizer = torch.optim.SGD(groups, lr=0.5)
    project_after_step(held, optimizer)
    for _ in range(50):
        for group, layer in zip(optimizer.param_groups[1:], layers(grown).values(), strict=True):
            group["lr"] = 0.5 * (layer.radius / layer.layer.weight.norm()).item() ** 2
        trained(grown, free, 1)
        trained(held, optimizer, 1)
    growth = grown[0].layer.weight.norm() / grown[0].radius
    assert growth > 1.02  # or nothing has been shown
    assert torch.allclose(held(X), grown(X), atol=1e-4)


def test_norms_are_saved_with_the_weights():
    made = normalize_and_project(network())
    radius = made[0].radius.clone()
    other = normalize_and_project(network())
    with torch.no_grad():
        made[0].layer.weight.mul_(5)
        other[0].radius.mul_(2)
    other.load_state_dict(made.state_dict())
    project_weights(other)
    assert torch.allclose(other[0].layer.weight.norm(), radius)


def test_half_precision_norms_are_taken_in_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2)).to(torch.bfloat16)
    made = normalize_and_project(model)
    assert made[0].radius.dtype == torch.float32
    assert made[0].radius.item() == pytest.approx(model[0].weight.double().norm().item(), rel=1e-5)


def test_a_weight_shared_by_two_layers_is_projected_to_one_norm_and_copies_are_not_touched():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    made = normalize_and_project(model)
    assert made[0].layer.weight is made[2].layer.weight
    average = copy.deepcopy(made)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.0)
    project_after_step(made, optimizer)
    with torch.no_grad():
        made[0].layer.weight.mul_(2), average[0].layer.weight.mul_(2)
    optimizer.step()
    assert torch.allclose(made[0].layer.weight, model[0].weight)
    assert torch.allclose(average[0].layer.weight, 2 * model[0].weight)


def test_frozen_gains_require_no_gradient():
    made = normalize_and_project(network(), gains="frozen")
    frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
    assert frozen == {"0.norm.weight", "0.norm.bias", "3.weight", "3.bias"}


def test_refusals():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)

        def forward(self, x):
            return self.b(self.a(x)) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"torch\.fx can trace, or inputs or layers be given: "):
        normalize_and_project(Branches())
    assert list(layers(normalize_and_project(Branches(), layers=["a"]))) == ["a"]
    with pytest.raises(ValueError, match=r"layers must name a Linear, .*; got 'c'"):
        normalize_and_project(Branches(), layers=["c"])
    with pytest.raises(ValueError, match=r"layers must name a Linear, .*; got '0', a ReLU"):
        normalize_and_project(nn.Sequential(nn.ReLU()), layers=["0"])
    with pytest.raises(ValueError, match="layers must be a collection of names, got the string 'a'"):
        normalize_and_project(Branches(), layers="a")
    with pytest.raises(ValueError, match=r"model must be a torch\.nn\.Module, got int"):
        normalize_and_project(3)
    with pytest.raises(ValueError, match="model must have a linear or convolution layer before the last"):
        normalize_and_project(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match=r"module '0' \(Conv2d\): norm must be 'layer' for a convolution"):
        normalize_and_project(images(), norm="rms")
    zero = network()
    nn.init.zeros_(zero[2].weight)
    with pytest.raises(ValueError, match=r"module '2' \(Linear\): weight must have a direction, got zeros"):
        normalize_and_project(zero)
    special = images()
    WeightStandardization.of(special[2])
    with pytest.raises(ValueError, match=r"module '2' .* must be a plain parameter, got a parametrized one"):
        normalize_and_project(special)
    with pytest.raises(ValueError, match=r"module '0' .* must hold numbers, got one on the meta device"):
        normalize_and_project(network().to("meta"))
    with pytest.raises(ValueError, match="gains must be one of free, frozen, projected; got 'fixed'"):
        normalize_and_project(network(), gains="fixed")
    made = normalize_and_project(network())
    with pytest.raises(
        ValueError, match="optimizer must hold the weights of the new model, got one without '0'"
    ):
        project_after_step(made, torch.optim.SGD(network().parameters(), lr=0.1))
    with pytest.raises(ValueError, match="model must come from normalize_and_project"):
        project_weights(network())


def test_gains_from_an_assigned_state_dict_are_projected_too():
    model = normalize_and_project(network(), gains="projected")
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    project_after_step(model, optimizer)
    model(torch.randn(16, 5).double()).square().sum().backward()
    optimizer.step()
    for layer in (one for one in model.modules() if isinstance(one, NormalizedLayer)):
        gains = torch.cat([p.detach() for norm in layer.gain_owners for p in norm.parameters()])
        torch.testing.assert_close(gains.norm(), layer.gain_radius)


def test_a_second_call_and_a_layer_of_one_unit_are_refused():
    with pytest.raises(ValueError, match="normalised before, got '0'"):
        normalize_and_project(normalize_and_project(network()))
    gate = nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Linear(1, 2))
    with pytest.raises(ValueError, match=r"module '0' \(Linear\): one unit alone would become constant"):
        normalize_and_project(gate)
