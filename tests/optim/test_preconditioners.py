"""What an optimizer multiplies a gradient by, against what its step does: also where that is no diagonal."""

import pytest
import torch
from torch import nn

from thalweg import optim

SGD = optim.momentum(0.0)
ADAM = optim.adam((0.0, 0.9), 1e-3)
WIDE, TALL = (6, 11), (11, 6)
CHAINS = {
    "project": optim.project(3, 1000, ADAM, 0.25),
    "project, in full": optim.project(6, 1000, ADAM, 2.0),
    "project, 4-bit basis": optim.project(3, 1000, ADAM, basis_bits=4),
    "project, plain momentum": optim.project(3, 1000, SGD, 0.25),
    "normalized": optim.normalized(ADAM),
    "normalized, projected": optim.normalized(optim.project(3, 1000, ADAM, 0.5)),
    "normalized, momentum": optim.normalized(SGD, (0.0, 0.9), 1e-3),
    "split, columns": optim.split("columns", 0.5, 1000, ADAM, SGD, 0.5, 0.25),
    "split, rows": optim.split("rows", 0.5, 1000, ADAM, inner_scale=3.0, rest_scale=0.0),
    "split, random": optim.split("random", 0.5, 1000, ADAM, SGD, 0.5, 0.25),
    "split, svd": optim.split("svd", 0.5, 1000, ADAM, rest_scale=0.0),
    "split, blocks": optim.split("blocks", 0.5, 1000, ADAM, SGD, 0.5, 0.25),
}


def stepped(chain, shape, steps=4, lr=1e-7, **more):
    """An optimizer after some steps; parameter, last gradient and the update of the last step."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = optim.Descent([p], chain, lr=lr, **more)
    for _ in range(steps):
        p.grad, before = torch.randn_like(p), p.detach().clone()
        optimizer.step()
    return optimizer, p, p.grad, (before - p.detach()) / lr


def times(multiplier, gradient):
    return multiplier * gradient if isinstance(multiplier, torch.Tensor) else multiplier.times(gradient)


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("chain", CHAINS.values(), ids=CHAINS)
def test_it_makes_of_the_gradient_what_a_step_without_momentum_does(chain, shape):
    optimizer, p, gradient, update = stepped(chain, shape)
    found = times(optimizer.preconditioner(p), gradient)
    torch.testing.assert_close(found, update, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [WIDE, TALL], ids=["wide", "tall"])
@pytest.mark.parametrize("name", ["project", "split, random", "normalized, projected"])
def test_a_factor_and_its_transpose_belong_together(name, shape):
    optimizer, p, gradient, _ = stepped(CHAINS[name], shape)
    found = optimizer.preconditioner(p)
    x = torch.randn(found.size, dtype=torch.float64)
    assert found.shape == p.shape and found.finite()
    assert (found.factor(x) * gradient).sum().item() == pytest.approx(
        torch.dot(x, found.transposed(gradient)).item(), rel=1e-12
    )
    torch.testing.assert_close(found.scaled(3.0).times(gradient), 3 * found.times(gradient))


def test_lengths_and_directions_are_bounded_each_by_its_own_part_of_the_gradient():
    optimizer, p, _, _ = stepped(CHAINS["normalized"], WIDE)
    found = optimizer.preconditioner(p)
    gradient, share = 100 * torch.randn_like(p), 0.3
    bounded = found.bounded(gradient, share)
    unit = p.detach() / p.detach().norm(dim=1, keepdim=True)
    along = (unit * gradient).sum(1, keepdim=True)
    turn = gradient - along * unit
    torch.testing.assert_close(bounded.lengths, found.lengths.minimum(1 / (share * along.abs())))
    torch.testing.assert_close(bounded.inner, found.inner.minimum(1 / (share * turn.abs())))
    assert (bounded.lengths < found.lengths).any() and (bounded.inner < found.inner).any()


# Not projected in 4 bits: mean squares there lie far apart, and 4 bits keep none below 1/16 of the largest.
@pytest.mark.parametrize(("bits", "projected"), [(8, False), (4, False), (8, True)])
def test_state_in_few_bits_is_read(bits, projected):
    few = optim.quantized(ADAM, bits, smallest=0)
    torch.manual_seed(1)
    p = nn.Parameter(torch.randn(20, 30))
    optimizer = optim.Descent([p], optim.project(5, 1000, few) if projected else few, lr=1e-3)
    full = optim.project(5, 1000, ADAM) if projected else ADAM
    exact = optim.Descent([q := nn.Parameter(p.detach().clone())], full, lr=1e-3)
    for _ in range(3):
        p.grad = q.grad = torch.rand(20, 30) + 1
        optimizer.step(), exact.step()
    found, known = (times(one.preconditioner(r), p.grad) for one, r in ((optimizer, p), (exact, q)))
    # 16 even steps up to the largest mean square: half a step is 1/16 of half the largest.
    assert ((found - known).norm() / known.norm()).item() < (0.02 if bits == 8 else 0.08)


def test_what_is_no_multiple_of_the_gradient_has_none():
    signs = [
        optim.split("columns", 0.5, 1000, ADAM),
        optim.split("random", 0.5, 1000, ADAM),
        optim.project(3, 1000, ADAM, residual="scaled"),
        optim.project(3, 1000, optim.lion()),
        optim.normalized(optim.lion()),
    ]
    for chain in signs:
        optimizer, p, _, _ = stepped(chain, WIDE)
        assert optimizer.preconditioner(p) is None, chain


def test_before_the_first_step_there_is_none():
    p = nn.Parameter(torch.randn(WIDE))
    assert optim.GaLore([p], rank=3).preconditioner(p) is None


@pytest.mark.parametrize("inner", [optim.momentum(0.9), optim.momentum(0.9, nesterov=True)])
def test_momentum_within_a_subspace_settles_below_its_limit_and_grows_above(inner):
    for factor, settles in ((0.98, True), (1.02, False)):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(WIDE, dtype=torch.float64))
        optimizer = optim.Descent([p], optim.project(6, 10**6, inner, scale=0.25), lr=0.1)
        limit = optimizer.stability_limit(optimizer.param_groups[0])
        p.grad = p.detach().clone()
        optimizer.step()
        multiplier = optimizer.preconditioner(p)
        curvature = factor * limit / (multiplier.times(p.grad) / p.grad).mean().item()
        for _ in range(2000):
            p.grad = curvature * p.detach()
            optimizer.step()
        assert (p.norm().item() < 1e-3) == settles
        assert (p.norm().item() > 1e3) != settles


def test_limits_of_what_works_inside_are_those_of_the_inner_rule():
    p = nn.Parameter(torch.randn(WIDE))
    for chain in (optim.project(3), optim.normalized(optim.project(3))):
        optimizer = optim.Descent([p], chain, lr=0.1)
        assert optimizer.stability_limit(optimizer.param_groups[0]) == pytest.approx(38 / 0.1)
    mixed = optim.normalized(optim.adam((0.5, 0.9)), length_betas=(0.9, 0.99))
    for chain in (mixed, optim.project(3, residual="scaled"), optim.split()):
        optimizer = optim.Descent([p], chain, lr=0.1)
        with pytest.raises(ValueError, match="no stability limit is known"):
            optimizer.stability_limit(optimizer.param_groups[0])
