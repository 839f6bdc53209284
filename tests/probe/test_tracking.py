"""A reading that goes on from the last one takes four products, and stays true along a whole run."""

from __future__ import annotations

from statistics import quantiles

import pytest
import torch

from thalweg import optim
from thalweg.probe import gauss_newton_sharpness, preconditioner_of, sharpness, stability_limit
from thalweg.tasks import MLP


class Run:
    """A tanh network on 60 points; by gradient descent it reaches the edge of stability after 200 steps."""

    def __init__(self, make):
        source = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(60, 8, generator=source, dtype=torch.float64)
        self.targets = self.inputs.sum(1, keepdim=True).sin()
        self.model = MLP((8, 24, 24, 1), activation="tanh", seed=0).double()
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
def test_four_products_a_reading_stay_close_to_the_exact_value_along_a_run(make, measure, top):
    run = Run(make)
    run.train(20)
    last, errors = None, []
    for _ in range(40):
        options = {"warm_start": last.vectors, "iterations": 4} if last else {"iterations": 20}
        last = measure(run, top=top, **options)
        if errors:
            assert last.hvps <= 4
        exact = measure(run, iterations=80, tol=1e-8).top
        assert last.top <= exact * (1 + 1e-9)  # Ritz values come from below
        errors.append(1 - last.top / exact)
        run.train(10)
    assert max(errors) < 0.03
    assert quantiles(errors, n=20)[-1] < 0.01


def test_the_run_that_is_tracked_sharpens_up_to_the_edge_of_stability():
    run = Run(gradient_descent)
    limit = stability_limit(run.optimizer)
    first = of_hessian(run).top
    run.train(400)
    assert first < 0.4 * limit
    assert of_hessian(run).top == pytest.approx(limit, rel=0.15)
