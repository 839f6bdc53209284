from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev
from torch.nn import functional

from thalweg import optim
from thalweg.probe import (
    gauss_newton_sharpness,
    ggn_operator,
    hvp_operator,
    preconditioned,
    preconditioner_of,
    top_eigenpairs,
)


def operator_of(problem):
    return ggn_operator(lambda: problem.model(problem.inputs), problem.loss, problem.params)


def dense(operator) -> torch.Tensor:
    return torch.stack([operator.matvec(e) for e in torch.eye(operator.n, dtype=operator.like.dtype)], dim=1)


def explicit_ggn(problem) -> torch.Tensor:
    """The Jacobian and the loss's Hessian written out and multiplied."""
    named = {name: p.detach() for name, p in problem.model.named_parameters()}
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        outputs = functional_call(problem.model, named, (problem.inputs,))
        jacobians = jacrev(lambda p: functional_call(problem.model, p, (problem.inputs,)).flatten())(named)
    jacobian = torch.cat([j.flatten(1) for j in jacobians.values()], dim=1)
    outer = hessian(lambda z: problem.loss(z.view_as(outputs)))(outputs.flatten())
    return jacobian.T @ outer @ jacobian


def test_operator_equals_the_explicit_product(problem):
    torch.testing.assert_close(dense(operator_of(problem)), explicit_ggn(problem), rtol=1e-9, atol=1e-12)


def test_operator_equals_curvlinops(mlp):
    curvlinops = pytest.importorskip("curvlinops")
    targets = torch.randint(3, (20,))
    loss = nn.CrossEntropyLoss()
    ours = ggn_operator(lambda: mlp.model(mlp.inputs), lambda z: loss(z, targets), mlp.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = curvlinops.GGNLinearOperator(mlp.model, loss, mlp.params, [(mlp.inputs, targets)])
        whole = curvlinops.HessianLinearOperator(mlp.model, loss, mlp.params, [(mlp.inputs, targets)])
        hessian_of_ours = hvp_operator(lambda: loss(mlp.model(mlp.inputs), targets), mlp.params)
        for vector in torch.randn(3, ours.n, dtype=torch.float64):
            torch.testing.assert_close(ours.matvec(vector), theirs @ vector, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(hessian_of_ours.matvec(vector), whole @ vector, rtol=1e-9, atol=1e-12)


def test_sharpness_equals_the_explicit_spectrum_also_preconditioned(problem):
    explicit = explicit_ggn(problem)
    diagonals = [torch.rand_like(p) * 3 + 0.1 for p in problem.params]
    root = torch.cat([d.reshape(-1) for d in diagonals]).sqrt()
    for given, matrix in ((None, explicit), (diagonals, root[:, None] * explicit * root)):
        found = gauss_newton_sharpness(
            lambda: problem.model(problem.inputs),
            problem.loss,
            problem.params,
            top=3,
            iterations=60,
            tol=1e-9,
            preconditioner=given,
        )
        assert found.eigenvalues == pytest.approx(torch.linalg.eigvalsh(matrix).flip(0)[:3].tolist(), 1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: optim.AdamW(params, lr=1e-2),
        lambda params: optim.Descent(params, optim.clip_norm(1.0), optim.adam(), lr=1e-2),
        lambda params: torch.optim.RMSprop(params, lr=1e-2),
    ],
    ids=["AdamW", "clipped Adam", "torch RMSprop"],
)
def test_any_optimizer_preconditions_the_gauss_newton_matrix(mlp, make):
    optimizer = make(mlp.params)
    for _ in range(4):
        optimizer.zero_grad()
        mlp.loss_fn().backward()
        optimizer.step()
    diagonals = preconditioner_of(optimizer, mlp.params)
    assert any(bool((d != 1).any()) for d in diagonals)
    found = top_eigenpairs(preconditioned(operator_of(mlp), diagonals), iterations=40, tol=1e-9)
    # P G is not symmetric, but has the same eigenvalues.
    product = torch.cat([d.reshape(-1) for d in diagonals])[:, None] * explicit_ggn(mlp)
    assert found.top == pytest.approx(torch.linalg.eigvals(product).real.max().item(), rel=1e-6)


def test_no_eigenvalue_is_negative_where_the_hessian_has_some(mlp):
    assert torch.linalg.eigvalsh(dense(operator_of(mlp)))[0] > -1e-12
    assert torch.linalg.eigvalsh(mlp.hessian())[0] < -1e-3


def test_it_is_the_hessian_where_squared_error_is_zero():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    inputs = torch.randn(8, 3, dtype=torch.float64)
    goal = model(inputs).detach()
    params = list(model.parameters())
    whole = hvp_operator(lambda: functional.mse_loss(model(inputs), goal), params)
    part = ggn_operator(lambda: model(inputs), lambda z: functional.mse_loss(z, goal), params)
    torch.testing.assert_close(dense(part), dense(whole), rtol=1e-9, atol=1e-12)


def test_outputs_are_computed_once_and_dropout_is_one_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Dropout(0.5), nn.Linear(32, 1))
    inputs, calls = torch.randn(8, 4), []

    def output_fn():
        calls.append(1)
        return model(inputs)

    before = torch.get_rng_state()
    operator = ggn_operator(output_fn, lambda z: z.square().mean(), model.parameters())
    first, second = operator.matvec(torch.ones(operator.n)), operator.matvec(torch.ones(operator.n))
    assert torch.equal(first, second) and len(calls) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_a_parameter_outside_the_graph_and_a_linear_loss_have_no_curvature():
    used, unused = (torch.ones(2, requires_grad=True) for _ in range(2))
    assert ggn_operator(lambda: 3 * used, lambda z: z.square().sum(), [used, unused]).matvec(
        torch.ones(4)
    ).tolist() == [18, 18, 0, 0]
    assert ggn_operator(lambda: used**2, lambda z: z.sum(), [used]).matvec(torch.ones(2)).tolist() == [0, 0]


W = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("output_fn", "loss_fn", "message"),
    [
        (lambda: (W, W), torch.sum, "one floating-point tensor, got tuple"),
        (lambda: W.detach(), torch.sum, "require a gradient, got some detached"),
        (lambda: 2 * W, lambda z: z, r"scalar tensor, got shape \(2,\)"),
        (lambda: 2 * W, lambda z: z.sum() / 0, "finite loss, got inf"),
        (lambda: 2 * W, lambda z: z.detach().sum(), "depends on the outputs, got one that does not"),
    ],
)
def test_ggn_operator_refuses(output_fn, loss_fn, message):
    with pytest.raises(ValueError, match=message):
        ggn_operator(output_fn, loss_fn, [W])


def test_preconditioned_refuses():
    operator = hvp_operator(lambda: W.square().sum(), [W])
    with pytest.raises(ValueError, match=r"preconditioner\[0\] must have shape \(2,\), got \(3,\)"):
        preconditioned(operator, [torch.ones(3)])
