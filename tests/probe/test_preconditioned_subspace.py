"""Sharpness behind an optimizer that works in a subspace, against the explicit product of P and Hessian."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg import optim
from thalweg.probe import layer_shares, preconditioned_sharpness, preconditioner_of, sharpness
from thalweg.watch.coming_step import behind
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.curvature import tracked_sharpness

ADAM = optim.adam((0.9, 0.95), 1e-4)


def trained(problem, chain, steps=6):
    optimizer = optim.Descent(problem.params, chain, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss_fn().backward()
        optimizer.step()
    return optimizer


def written_out(optimizer, params):
    """P, column by column; that it is what a step does is tested with the optimizers."""
    columns = []
    for p in params:
        (one,) = preconditioner_of(optimizer, [p])
        for index in range(p.numel()):
            g = torch.zeros(p.numel(), dtype=p.dtype)
            g[index] = 1
            g = g.view(p.shape)
            moved = one * g if isinstance(one, torch.Tensor) else one.times(g)
            columns.append(torch.cat([moved.flatten() if q is p else q.new_zeros(q.numel()) for q in params]))
    return torch.stack(columns, 1)


@pytest.mark.parametrize(
    "chain",
    [
        optim.project(2, 1000, ADAM, 0.25),
        optim.normalized(ADAM),
        optim.normalized(optim.project(2, 1000, ADAM)),
        optim.split("random", 0.5, 1000, ADAM, optim.momentum(0.0), 1.0, 0.1),
        optim.split("columns", 0.5, 1000, ADAM, rest_scale=0.0),
    ],
    ids=["project", "normalized", "both", "split with rest", "columns"],
)
def test_the_spectrum_is_that_of_the_explicit_product(mlp, chain):
    optimizer = trained(mlp, chain)
    values = torch.linalg.eigvals(written_out(optimizer, mlp.params) @ mlp.hessian())
    assert values.imag.abs().max() < 1e-8 * values.real.abs().max()
    expected = values.real.sort(descending=True).values[:3].tolist()
    found = preconditioned_sharpness(mlp.loss_fn, mlp.params, optimizer, top=3, iterations=60, tol=1e-10)
    assert found.eigenvalues == pytest.approx(expected, rel=1e-6)
    assert abs(found.top / sharpness(mlp.loss_fn, mlp.params).top - 1) > 0.1  # it does matter
    warm = preconditioned_sharpness(
        mlp.loss_fn, mlp.params, optimizer, top=3, warm_start=found.vectors, tol=1e-6
    )
    assert warm.eigenvalues == pytest.approx(expected, rel=1e-5)


def test_shares_know_how_many_entries_each_parameter_has_in_its_subspace(mlp):
    optimizer = trained(mlp, optim.project(2, 1000, ADAM))
    found = preconditioned_sharpness(mlp.loss_fn, mlp.params, optimizer, iterations=60, tol=1e-10)
    assert found.sizes == (6 * 2, 6, 2 * 6, 3)
    (shares,) = found.shares(mlp.model)
    pieces = found.vectors[0].split(found.sizes)
    assert list(shares.values()) == pytest.approx([one.square().sum().item() for one in pieces])
    with pytest.raises(ValueError, match="sizes must hold 4 numbers, one a parameter, got 1"):
        layer_shares(found.vectors[0], mlp.model, [33])


def test_what_is_not_finite_in_a_subspace_is_refused(mlp):
    optimizer = trained(mlp, optim.project(2, 1000, ADAM))
    first = preconditioner_of(optimizer, mlp.params)[0]
    first.diagonal[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"preconditioner\[0\] must be finite and not negative"):
        sharpness(mlp.loss_fn, mlp.params, preconditioner=[first, None, None, None])


def classify(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_a_watched_galore_run_is_judged_by_its_own_preconditioner_and_limit():
    torch.manual_seed(0)
    model = nn.Linear(12, 8).double()
    opt = optim.GaLore(model.parameters(), rank=3, lr=1e-3)
    batch = torch.randn(64, 12).double(), torch.randint(8, (64,))
    for _ in range(20):
        opt.zero_grad()
        classify(model, batch).backward()
        opt.step()
    params = list(model.parameters())
    gradients = torch.autograd.grad(classify(model, batch), params)
    multipliers = behind(opt, params, preconditioner_of(opt, params), gradients)
    expected = sharpness(lambda: classify(model, batch), params, preconditioner=multipliers, tol=1e-6).top
    memory = {}
    for _ in range(4):
        at = Moment(21, dict(model.named_parameters()), opt, model, classify, batch)
        at.memory = memory
        readings = tracked_sharpness.read(at)
    (reading,) = readings
    assert reading.value == pytest.approx(expected, rel=0.02)
    assert reading.extra["limit"] == pytest.approx(38 / 1e-3)
    assert sum(reading.values.tolist()) == pytest.approx(reading.value, rel=1e-6)


def test_the_coming_gradient_bounds_the_diagonal_within_the_subspace():
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(9, 5, dtype=torch.float64))
    opt = optim.Descent([p], optim.project(2, 1000, optim.adam((0.9, 0.99))), lr=1e-3)
    p.grad = torch.randn_like(p)
    for _ in range(3):
        opt.step()
        p.grad *= 1e-3
    (before,) = preconditioner_of(opt, [p])
    gradient = torch.randn_like(p)
    (after,) = behind(opt, [p], [before], [gradient])
    bound = 1 / (0.1 * (gradient @ before.basis).abs())
    torch.testing.assert_close(after.diagonal, before.diagonal.minimum(bound))
    assert (after.diagonal < before.diagonal).any()
