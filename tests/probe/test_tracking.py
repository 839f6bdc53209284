"""A reading that goes on from the last one takes four products, or three more than it has eigenvalues."""

from __future__ import annotations

from statistics import fmean, quantiles

import pytest
import torch

from thalweg import optim
from thalweg.probe import (
    gauss_newton_sharpness,
    hvp_operator,
    preconditioner_of,
    sharpness,
    stability_limit,
    subspace_overlap,
    top_eigenpairs,
    top_subspace,
)
from thalweg.tasks import MLP


class Run:
    """A tanh network on 60 points; by gradient descent it reaches the edge of stability after 200 steps."""

    def __init__(self, make, width=24):
        source = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(60, 8, generator=source, dtype=torch.float64)
        self.targets = self.inputs.sum(1, keepdim=True).sin()
        self.model = MLP((8, width, width, 1), activation="tanh", seed=0).double()
        self.params = list(self.model.parameters())
        self.optimizer = make(self.params)

    def outputs(self):
        return self.model(self.inputs)

    def loss_of(self, outputs):
        return (outputs - self.targets).square().mean() / 2

    def loss(self):
        return self.loss_of(self.outputs())

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()


def of_hessian(run: Run, **options):
    return sharpness(run.loss, run.params, **options)


def of_preconditioned_hessian(run: Run, **options):
    diagonal = preconditioner_of(run.optimizer, run.params)
    return sharpness(run.loss, run.params, preconditioner=diagonal, **options)


def of_gauss_newton(run: Run, **options):
    return gauss_newton_sharpness(run.outputs, run.loss_of, run.params, **options)


def gradient_descent(params):
    return optim.SGD(params, lr=0.3)


def adam(params):
    return optim.AdamW(params, lr=0.003)


@pytest.mark.parametrize(
    ("make", "measure"),
    [(gradient_descent, of_hessian), (gradient_descent, of_gauss_newton), (adam, of_preconditioned_hessian)],
)
@pytest.mark.parametrize("top", [1, 2])
def test_few_products_a_reading_stay_close_to_the_exact_value_along_a_run(make, measure, top):
    run = Run(make)
    run.train(20)
    last, errors = None, []
    for _ in range(20):
        last = measure(run, top=top, warm_start=last.vectors if last else None)
        if errors:
            assert last.hvps <= {1: 4, 2: 5}[top]
        exact = measure(run, iterations=80, tol=1e-8).top
        assert last.top <= exact * (1 + 1e-9)  # Ritz values come from below
        errors.append(1 - last.top / exact)
        run.train(20)
    assert max(errors) < 0.03
    assert quantiles(errors, n=20)[-1] < 0.01


def test_four_products_are_enough_for_two_eigenvalues_too():
    run = Run(gradient_descent)
    run.train(20)
    last = of_hessian(run, top=2)
    for _ in range(10):
        run.train(10)
        last = of_hessian(run, top=2, warm_start=last.vectors, iterations=4)
        assert last.hvps == 4
        assert last.top == pytest.approx(of_hessian(run, iterations=80, tol=1e-8).top, rel=0.03)


def explicit(run: Run) -> torch.Tensor:
    """All eigenvalues, the largest first."""
    operator = hvp_operator(run.loss, run.params)
    hessian = torch.stack([operator.matvec(row) for row in torch.eye(operator.n, dtype=torch.float64)])
    return torch.linalg.eigvalsh((hessian + hessian.T) / 2).flip(0)


@pytest.mark.parametrize("top", [1, 5])
def test_a_tracked_reading_against_the_explicit_hessian_along_a_run(top):
    run = Run(gradient_descent, width=6)
    run.train(20)
    last, errors = of_hessian(run, top=top), []
    for _ in range(20):
        run.train(10)
        last = of_hessian(run, top=top, warm_start=last.vectors)
        assert last.hvps <= max(4, top + 3)
        exact = explicit(run)
        found = torch.tensor(last.eigenvalues, dtype=torch.float64)
        assert bool((found <= exact[:top] * (1 + 1e-9)).all())
        errors.append(((exact[:top] - found) / exact[0]).max().item())
    assert max(errors) < {1: 0.01, 5: 0.06}[top]
    assert fmean(errors) < {1: 0.001, 5: 0.015}[top]


def test_a_tracked_subspace_takes_three_more_products_than_it_has_dimensions():
    run = Run(gradient_descent, width=6)
    run.train(20)
    last = top_subspace(run.loss, run.params, 3)
    for _ in range(10):
        run.train(10)
        exact = top_subspace(run.loss, run.params, 3, iterations=120, tol=1e-7)
        last = top_subspace(run.loss, run.params, 3, previous=last.vectors)
        assert last.hvps <= 6
        assert last.share == pytest.approx(exact.share, abs=0.1)
        assert subspace_overlap(last.vectors, exact.vectors) > 0.9


def test_an_unchanged_function_is_read_with_as_few_products_and_another_eigenvalue_may_overtake():
    curvatures = torch.tensor([5.0, 4.0, 9.0, 1.0, 0.5, 0.1, 0.01])
    w = torch.zeros(7, requires_grad=True)

    def loss():
        return 0.5 * (curvatures * w.square()).sum()

    exact = sharpness(loss, [w], top=2, iterations=7, tol=0)
    again = sharpness(loss, [w], top=2, warm_start=exact.vectors)
    assert again.hvps == 4 and again.eigenvalues == pytest.approx((9, 5), rel=1e-5)
    old = list(torch.eye(7)[:2])
    assert sharpness(loss, [w], top=2, warm_start=old).eigenvalues == pytest.approx((9, 5), rel=0.02)


def test_the_run_that_is_tracked_sharpens_up_to_the_edge_of_stability():
    run = Run(gradient_descent)
    limit = stability_limit(run.optimizer)
    first = of_hessian(run).top
    run.train(400)
    assert first < 0.4 * limit
    assert of_hessian(run).top == pytest.approx(limit, rel=0.15)


def test_a_product_that_is_not_finite_is_told_wherever_it_is_and_no_curvature_stays_none():
    w = torch.ones(9, requires_grad=True)
    seen = []

    def broken(vector):
        seen.append(1)
        return vector * (float("nan") if len(seen) == 2 else 1.0)

    operator = hvp_operator(lambda: w.square().sum(), [w])._replace(matvec=broken)
    with pytest.raises(ValueError, match="got a non-finite one at product 2"):
        top_eigenpairs(operator, top=3, warm_start=list(torch.eye(9)[:3]))
    flat = hvp_operator(lambda: w.sum(), [w])
    found = top_eigenpairs(flat, top=2, warm_start=list(torch.eye(9)[:2]), iterations=8, tol=0.0)
    assert found.eigenvalues == (0.0, 0.0)
