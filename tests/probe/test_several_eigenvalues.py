"""Several eigenvalues from a cold start: how many products they take, and that none is missed."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from thalweg.probe import hvp_operator, sharpness, top_eigenpairs


def counted(operator):
    """The same operator, and the list that grows by one entry a product."""
    spent = []

    def matvec(vector):
        spent.append(1)
        return operator.matvec(vector)

    return operator._replace(matvec=matvec), spent


@pytest.mark.parametrize(
    ("values", "top", "most"),
    [
        ([10.0] * 10, 2, 11),
        ([10.0] * 10, 5, 26),
        ([10.0] * 10 + [5.0] * 10 + [3.0] * 10, 5, 31),
        ([10.0, 10, 8, 8, 6, 6, 5, 5, 4, 4, 3, 3], 5, 26),
        ([10.0, 8, 6, 5, 4, 3.5, 3, 2.5, 2.2, 2], 5, 20),
        ([20 / k for k in range(1, 41)], 5, 20),
    ],
)
@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_several_eigenvalues_from_a_cold_start_are_right_and_take_few_products(values, top, most, tol):
    """Over a bulk of half-normal ones, 400 in all."""
    source = torch.Generator().manual_seed(1)
    bulk = 0.3 * torch.randn(400 - len(values), generator=source, dtype=torch.float64).abs()
    spectrum = torch.cat([torch.tensor(values, dtype=torch.float64), bulk])
    turn = torch.linalg.qr(torch.randn(400, 400, generator=source, dtype=torch.float64)).Q
    matrix = ((turn * spectrum) @ turn.T).float()
    w = torch.zeros(400, requires_grad=True)
    operator, spent = counted(hvp_operator(lambda: w @ matrix @ w / 2, [w]))
    found = top_eigenpairs(operator, top=top, tol=tol)
    assert found.eigenvalues == pytest.approx(spectrum.sort(descending=True).values[:top].tolist(), rel=1e-3)
    assert len(spent) == found.hvps <= most
    for value, vector in zip(found.eigenvalues, found.vectors, strict=True):
        assert (operator.matvec(vector) - value * vector).norm() <= tol * value


@pytest.mark.parametrize(("steps", "theirs"), [(0, 137), (300, 132)])
def test_eigenvalues_that_lie_close_are_each_found_with_fewer_products_than_power_iteration(steps, theirs):
    """PyHessian took as many, at the same tolerance, for values that are up to 3% off."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(256, 20), torch.randint(10, (256,))
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def loss():
        return functional.cross_entropy(model(inputs), labels)

    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    params = list(model.parameters())
    exact = sharpness(loss, params, top=5, iterations=300, tol=1e-6).eigenvalues
    operator, spent = counted(hvp_operator(loss, params))
    found = top_eigenpairs(operator, top=5, tol=1e-3)
    assert found.eigenvalues == pytest.approx(exact, rel=0.01)
    assert len(spent) <= 2 * 20 + 16 < theirs / 2


def test_a_tighter_tolerance_loses_no_copy():
    """Of a softmax classifier at zero: nine copies of each eigenvalue that differs."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(256, 20), torch.randint(10, (256,))
    weight = torch.zeros(10, 21, requires_grad=True)
    rows = torch.cat([inputs, torch.ones(256, 1)], 1)
    exact = torch.linalg.eigvalsh(rows.double().T @ rows.double() / 2560)[-1].item()
    for top, tol in ((2, 1e-2), (2, 1e-3), (5, 1e-2), (5, 1e-3)):
        found = sharpness(
            lambda: functional.cross_entropy(rows @ weight.T, labels), [weight], top=top, tol=tol
        )
        assert (
            found.eigenvalues == pytest.approx([exact] * top, rel=tol) and found.hvps <= {2: 28, 5: 64}[top]
        )


@pytest.mark.parametrize(
    ("values", "top"),
    [
        ([5.0] * 10 + [2.0] * 12 + [-1.0] * 8, 8),  # any start sees three, and ends after as many products
        ([5.0] * 3 + [2.0] * 2, 5),
        ([-1.0] * 4 + [-2.0] * 4, 6),
        ([3.0] + [0.0] * 20, 4),
        ([0.0] * 6, 6),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_eigenvalues_that_differ_than_are_asked_for(values, top, dtype):
    source = torch.Generator().manual_seed(1)
    n = len(values)
    turn = torch.linalg.qr(torch.randn(n, n, generator=source, dtype=torch.float64)).Q
    matrix = ((turn * torch.tensor(values, dtype=torch.float64)) @ turn.T).to(dtype)
    w = torch.zeros(n, dtype=dtype, requires_grad=True)
    found = top_eigenpairs(hvp_operator(lambda: w @ matrix @ w / 2, [w]), top=top)
    assert found.eigenvalues == pytest.approx(sorted(values, reverse=True)[:top], abs=1e-4)
    vectors = torch.stack(found.vectors)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(top, dtype=dtype), rtol=0, atol=1e-5)
