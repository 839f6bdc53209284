from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import hvp_operator


def test_operator_equals_explicit_hessian(problem):
    matvec, n, like, _ = hvp_operator(problem.loss_fn, problem.params)
    explicit = problem.hessian()
    columns = torch.stack([matvec(e) for e in torch.eye(n, dtype=like.dtype)], dim=1)
    torch.testing.assert_close(columns, explicit, rtol=1e-9, atol=1e-11)


def test_operator_of_a_quadratic_is_its_matrix_also_in_float32():
    matrix = torch.tensor([[2.0, 1.0, 0.0], [1.0, -3.0, 0.5], [0.0, 0.5, 1.0]])
    w = torch.randn(3, requires_grad=True)
    matvec, n, like, _ = hvp_operator(lambda: 0.5 * w @ matrix @ w, [w])
    assert (n, like.dtype) == (3, torch.float32)
    torch.testing.assert_close(torch.stack([matvec(e) for e in torch.eye(3)]), matrix)


def test_parameter_outside_the_graph_and_a_linear_one_have_zero_rows():
    used, unused, linear = (torch.ones(2, requires_grad=True) for _ in range(3))
    matvec, *_ = hvp_operator(lambda: 3 * used.square().sum() + linear.sum(), [used, unused, linear])
    assert matvec(torch.ones(6)).tolist() == [6, 6, 0, 0, 0, 0]


def test_linear_loss_has_no_curvature():
    w = torch.ones(3, requires_grad=True)
    assert hvp_operator(lambda: w.sum(), [w]).matvec(torch.ones(3)).tolist() == [0, 0, 0]


def test_bfloat16_parameters_are_multiplied_in_float32_vectors():
    w = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    matvec, _, like, _ = hvp_operator(lambda: 2 * w.float().square().sum(), [w])
    assert like.dtype is torch.float32
    assert matvec(torch.tensor([1.0, 0.5])).tolist() == [4, 2]


def test_gradients_and_random_state_stay_and_dropout_is_one_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 1))
    inputs = torch.randn(8, 4)
    for p in model.parameters():
        p.grad = torch.full_like(p, 7)
    before = torch.get_rng_state()
    matvec, n, _, _ = hvp_operator(lambda: model(inputs).square().mean(), model.parameters())
    direction = torch.ones(n)
    products = [matvec(direction) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(bool((p.grad == 7).all()) for p in model.parameters())
    assert torch.equal(products[0], products[1]) and torch.equal(products[0], products[2])
    # The mask is the one that the next forward pass of the training loop would draw.
    torch.set_rng_state(before)
    listed = list(model.parameters())
    gradient = torch.autograd.grad(model(inputs).square().mean(), listed, create_graph=True)
    expected = torch.autograd.grad(sum(g.sum() for g in gradient), listed)
    torch.testing.assert_close(products[0], torch.cat([g.reshape(-1) for g in expected]))


def test_loss_runs_once_for_any_number_of_products():
    w = torch.ones(2, requires_grad=True)
    calls = []

    def loss_fn():
        calls.append(1)
        return w.pow(4).sum()

    matvec = hvp_operator(loss_fn, [w]).matvec
    assert [matvec(torch.ones(2)).tolist() for _ in range(4)] == [[12, 12]] * 4
    assert len(calls) == 1


def test_operator_works_inside_no_grad():
    w = torch.ones(2, requires_grad=True)
    with torch.no_grad():
        product = hvp_operator(lambda: w.square().sum(), [w]).matvec(torch.ones(2))
    assert product.tolist() == [2, 2]


W = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("loss_fn", "params", "message"),
    [
        (lambda: W.sum(), [], "params must hold at least one tensor"),
        (lambda: W * 2, [W], r"scalar tensor, got shape \(2,\)"),
        (lambda: 1.0, [W], "scalar tensor, got float"),
        (lambda: W.sum() / 0, [W], "finite loss, got inf"),
        (lambda: W.detach().sum(), [W], "requires a gradient, got one detached"),
        (lambda: W.sum(), [W, W], "once, got one of them twice"),
        (lambda: W.sum(), [W, torch.ones(2)], r"params\[1\] must require a gradient"),
        (lambda: W.sum(), [torch.ones(2, dtype=torch.long)], r"params\[0\] must be a real floating-point"),
    ],
)
def test_operator_refuses(loss_fn, params, message):
    with pytest.raises(ValueError, match=message):
        hvp_operator(loss_fn, params)


def test_matvec_refuses_a_vector_of_another_shape():
    matvec = hvp_operator(lambda: W.square().sum(), [W]).matvec
    with pytest.raises(ValueError, match=r"vector must have shape \(2,\), got \(3,\)"):
        matvec(torch.ones(3))


def test_random_state_returns_when_the_loss_raises():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="finite"):
        hvp_operator(lambda: W.sum() * functional.dropout(torch.ones(3)).sum() * float("nan"), [W])
    assert torch.equal(torch.get_rng_state(), before)


def parametrized(linear: nn.Linear) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(linear)


def by_hooks(linear: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in the models of years
        return nn.utils.weight_norm(linear)


@pytest.mark.parametrize("make", [parametrized, by_hooks])
def test_weight_normalisation_is_differentiated_through_its_norm(make):
    """torch's own second derivative of it is not even symmetric."""
    inputs = torch.randn(6, 4, dtype=torch.float64)
    layer = make(nn.Linear(4, 3).double())
    params = list(layer.parameters())  # bias, lengths, directions

    def written_out(flat):
        bias, length, direction = flat.split([3, 3, 12])
        direction = direction.view(3, 4)
        weight = length[:, None] * direction / direction.square().sum(1, keepdim=True).sqrt()
        return (inputs @ weight.T + bias).sin().square().sum()

    flat = torch.cat([p.detach().flatten() for p in params])
    explicit = torch.autograd.functional.hessian(written_out, flat)
    operator = hvp_operator(lambda: layer(inputs).sin().square().sum(), params)
    found = torch.stack([operator.matvec(unit) for unit in torch.eye(operator.n, dtype=torch.float64)])
    torch.testing.assert_close(found, explicit)


@pytest.mark.parametrize("inplace", [False, True])
def test_hardsigmoid_which_torch_differentiates_once_has_products(inplace):
    gate = nn.Hardsigmoid(inplace)
    p = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64, requires_grad=True)
    operator = hvp_operator(lambda: (gate(1.0 * p) ** 2).sum(), [p])
    inside = (p.detach().abs() < 3).double()
    torch.testing.assert_close(operator.matvec(torch.ones_like(p)), 2 / 36 * inside)
