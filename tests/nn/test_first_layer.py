from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg.credit import directional_derivative
from thalweg.nn import TrAct, TrActConv2d, TrActLinear, convert

GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": (0, 2), "dilation": (1, 2)},
    {"padding": "same", "dilation": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": "same", "padding_mode": "reflect", "groups": 2},
    {"groups": 4, "bias": False},
]


def passed(layer, x):
    """Output, gradients of input and parameters, and the gradient that arrived at the output."""
    layer.zero_grad()
    leaf = x.clone().requires_grad_()
    out = layer(leaf)
    g = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    out.backward(g)
    return out.detach(), leaf.grad, {name: p.grad.clone() for name, p in layer.named_parameters()}, g


def fitted(x, g, ridge):
    """The formula of the paper in its first form, with an inverse written out."""
    system = x.T @ x / len(x) + ridge * torch.eye(x.shape[1], dtype=x.dtype)
    return g.T @ x @ torch.linalg.inv(system)


@pytest.mark.parametrize("shape", [(30, 8), (5, 8), (3, 4, 8), (2, 2, 8)])
def test_both_forms_of_the_linear_weight_gradient_are_the_papers(shape):
    torch.manual_seed(0)
    layer = TrActLinear(8, 3, ridge=0.3, dtype=torch.float64)
    x = torch.randn(shape, dtype=torch.float64)
    *_, found, g = passed(layer, x)
    assert torch.allclose(found["weight"], fitted(x.flatten(0, -2), g.flatten(0, -2), 0.3), rtol=1e-9)


def test_it_is_the_ridge_regression_on_a_step_of_the_outputs():
    """The least of |X D^T - b G|^2 / b + ridge |D|^2 over D: its slope, by autograd, is zero there."""
    torch.manual_seed(0)
    layer, x = TrActLinear(4, 3, ridge=0.2, dtype=torch.float64), torch.randn(20, 4, dtype=torch.float64)
    *_, found, g = passed(layer, x)
    step = found["weight"].requires_grad_()
    objective = (x @ step.T - 20 * g).square().sum() / 20 + 0.2 * step.square().sum()
    (slope,) = torch.autograd.grad(objective, step)
    assert slope.abs().max() < 1e-9 * objective


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_convolution_is_the_linear_layer_on_its_patches(geometry):
    torch.manual_seed(0)
    plain = nn.Conv2d(4, 8, (3, 2), **geometry, dtype=torch.float64)
    layer = TrAct.of(copy.deepcopy(plain), ridge=0.2)
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    out, to_input, found, g = passed(layer, x)
    reference = passed(plain, x)
    assert torch.equal(out, reference[0])
    assert torch.allclose(to_input, reference[1], rtol=1e-12)
    if layer.bias is not None:
        assert torch.allclose(found["bias"], reference[2]["bias"], rtol=1e-12)
    # Patches through the plain layer itself: what a filter with a single one reads off.
    groups = plain.groups
    probe = nn.Conv2d(4, 4 * 6, (3, 2), **{**geometry, "bias": False, "groups": 4}, dtype=torch.float64)
    with torch.no_grad():
        probe.weight.copy_(torch.eye(6, dtype=torch.float64).view(6, 1, 3, 2).repeat(4, 1, 1, 1))
        patches = probe(x).movedim(1, -1).flatten(0, -2)  # (rows, 4 channels x 6)
    arrived = g.movedim(1, -1).flatten(0, -2)
    for number in range(groups):
        rows = patches.chunk(groups, 1)[number]
        expected = fitted(rows, arrived.chunk(groups, 1)[number], 0.2)
        mine = found["weight"].chunk(groups, 0)[number].flatten(1)
        assert torch.allclose(mine, expected, rtol=1e-8, atol=1e-10)


def test_more_numbers_than_patches_and_one_image_without_a_batch():
    torch.manual_seed(0)
    layer = TrActConv2d(3, 2, 4, dtype=torch.float64)
    x = torch.randn(3, 5, 5, dtype=torch.float64)  # 4 patches of 48 numbers
    out, to_input, found, g = passed(layer, x)
    assert out.shape == (2, 2, 2) and to_input.shape == x.shape
    patches = nn.functional.unfold(x[None], 4)[0].T
    expected = fitted(patches, g.flatten(1).T, 0.1)
    assert torch.allclose(found["weight"].flatten(1), expected, rtol=1e-8)


def test_a_large_ridge_gives_the_ordinary_gradient_over_the_ridge():
    torch.manual_seed(0)
    for plain, x in ((nn.Linear(4, 3), torch.randn(9, 4)), (nn.Conv2d(2, 3, 2), torch.randn(2, 2, 4, 4))):
        ordinary = passed(plain, x)[2]["weight"]
        found = passed(TrAct.of(plain, ridge=1e6), x)[2]["weight"]
        assert torch.allclose(found * 1e6, ordinary, rtol=1e-4, atol=1e-5)


def test_ten_times_larger_inputs_make_a_step_ten_times_smaller():
    torch.manual_seed(0)
    x = torch.randn(200, 6)
    plain, layer = nn.Linear(6, 3), TrActLinear(6, 3, ridge=1e-3)
    norms = [[passed(one, scale * x)[2]["weight"].norm() for scale in (1, 10)] for one in (plain, layer)]
    assert norms[0][1] / norms[0][0] == pytest.approx(10, rel=1e-3)
    assert norms[1][1] / norms[1][0] == pytest.approx(0.1, rel=1e-2)


def test_under_autocast_the_fit_stays_in_float32_and_a_diverged_run_gets_nan():
    torch.manual_seed(0)
    layer, x = TrActLinear(8, 3), torch.randn(64, 8)
    exact = passed(layer, x)[2]["weight"]
    for one, batch in ((layer, x), (TrActLinear(8, 3).bfloat16(), x.bfloat16())):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=one is layer):
            _, to_input, found, _ = passed(one, batch)
        assert found["weight"].dtype is one.weight.dtype and to_input.dtype is batch.dtype
        assert (found["weight"] - exact).norm() < 0.02 * exact.norm()
    assert passed(layer, x * float("nan"))[2]["weight"].isnan().all()


def test_in_evaluation_it_is_the_plain_layer_twice_differentiable_too():
    torch.manual_seed(0)
    for plain, x in ((nn.Linear(4, 3), torch.randn(9, 4)), (nn.Conv2d(2, 3, 2), torch.randn(2, 2, 4, 4))):
        layer = TrAct.of(copy.deepcopy(plain)).eval()
        ordinary, found = passed(plain, x)[2], passed(layer, x)[2]
        assert all(torch.equal(found[name], ordinary[name]) for name in ordinary)
        second = torch.func.hessian(lambda x, layer=layer: layer(x).square().sum())(x)
        assert second.abs().max() > 0


@pytest.mark.parametrize(
    ("layer", "x"), [(nn.Linear(5, 3), torch.randn(7, 5)), (nn.Conv2d(2, 3, 3), torch.randn(4, 2, 6, 6))]
)
def test_functional_gradients_are_those_of_the_backward_pass_and_forward_mode_sees_the_loss(layer, x):
    made = TrAct.of(layer).train()

    def loss(model, x):
        return model(x).square().sum()

    loss(made, x).backward()
    given = dict(made.named_parameters())
    found = torch.func.grad(lambda p: torch.func.functional_call(made, p, (x,)).square().sum())(given)
    assert all(torch.allclose(found[name], p.grad, rtol=1e-4) for name, p in given.items())
    single = torch.func.grad(lambda p, x: torch.func.functional_call(made, p, (x[None],)).square().sum())
    each = torch.func.vmap(single, in_dims=(None, 0))(given, x)
    for index, example in enumerate(x):
        made.zero_grad()
        loss(made, example[None]).backward()
        assert all(torch.allclose(each[name][index], p.grad, atol=1e-5) for name, p in given.items())
    tangents = {name: torch.randn_like(p) for name, p in given.items()}
    expected = directional_derivative(copy.deepcopy(made).eval(), x, loss, tangents)
    torch.testing.assert_close(directional_derivative(made, x, loss, tangents), expected)
    along = torch.func.jvp(made, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(along, torch.func.jvp(made.eval(), (x,), (torch.ones_like(x),)))


def test_a_model_is_converted_in_one_line_and_its_state_dict_fits():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3))
    made = convert(model, {"0": TrAct.of})
    assert type(made[0]) is TrActConv2d and type(made[2]) is nn.Conv2d and type(model[0]) is nn.Conv2d
    x = torch.randn(2, 1, 6, 6)
    assert torch.equal(made(x), model(x))
    model.load_state_dict(made.state_dict())
    made.load_state_dict(model.state_dict())
    assert torch.equal(torch.export.export(made, (x,)).module()(x), model(x))


def test_tract_refuses():
    for make in (lambda: TrActLinear(2, 3, ridge=0), lambda: TrActConv2d(2, 3, 1, ridge=0)):
        with pytest.raises(ValueError, match=r"ridge must be in \(0, inf\), got 0"):
            make()
    with pytest.raises(ValueError, match=r"module '0' \(Conv1d\): layer must be a plain .* got Conv1d"):
        convert(nn.Sequential(nn.Conv1d(1, 2, 3)), {"0": TrAct.of})
    assert "ridge=0.2" in repr(TrActLinear(2, 3, ridge="0.2"))  # text that is a number counts as one
    x = torch.ones(4, 2, requires_grad=True)
    (g,) = torch.autograd.grad(TrActLinear(2, 3)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
