"""Closed forms: clipping by norm, weight decay by its place, what a chain knows of itself."""

import pytest
import torch
from torch import nn
from toys import updates_of, zeros

from thalweg import optim


def three_groups(dtype):
    shapes = [(4, 3), (5,), (1,), (2, 2, 2, 2)]
    params = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    return params, [{"params": params[:2]}, {"params": params[2:3], "lr": 0.3}, {"params": params[3:]}]


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_clip_norm_is_torchs_clipping_before_the_step_over_all_groups(scale):
    ours, our_groups = three_groups(torch.float64)
    theirs, their_groups = three_groups(torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        b.data.copy_(a.data)
    one = optim.Descent(our_groups, optim.clip_norm(1.0), optim.adam(eps=1e-3), lr=0.1)
    other = torch.optim.Adam(their_groups, lr=0.1, eps=1e-3)
    for _ in range(10):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = scale * torch.randn_like(a)
            b.grad = a.grad.clone()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        one.step()
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_clip_norm_takes_the_norm_of_whatever_reaches_it():
    """Behind Adam's first step, every entry is +-1: the norm over 9 + 16 entries is 5."""
    a, b = zeros(9), zeros(16)
    optimizer = optim.Descent([a, b], optim.adam(eps=0.0), optim.clip_norm(2.0), lr=1.0)
    a.grad, b.grad = torch.full_like(a, 3.0), torch.full_like(b, -0.1)
    optimizer.step()
    assert a.detach().tolist() == pytest.approx([-0.4] * 9, rel=1e-6)
    assert b.detach().tolist() == pytest.approx([0.4] * 16, rel=1e-6)


def test_clip_norm_keeps_huge_finite_gradients_finite():
    """Squares of 3e38 overflow float32, where torch's clipping makes the gradient zero."""
    p = nn.Parameter(torch.zeros(4))
    p.grad = torch.full((4,), 3e38)
    optim.Descent([p], optim.clip_norm(1.0), lr=1.0).step()
    assert p.detach().tolist() == pytest.approx([-0.5] * 4)
    torch.nn.utils.clip_grad_norm_([p], 1.0)
    assert p.grad.eq(0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_norm_passes_a_gradient_that_is_not_finite_on_as_torch_does(bad):
    ours, theirs = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    ours.grad, theirs.grad = torch.tensor([bad, 1.0]), torch.tensor([bad, 1.0])
    torch.nn.utils.clip_grad_norm_([theirs], 1.0)
    optim.Descent([ours], optim.clip_norm(1.0), lr=1.0).step()
    torch.testing.assert_close(-ours.detach(), theirs.grad, equal_nan=True)


def test_decay_before_the_preconditioner_is_l2_and_behind_it_decoupled():
    pairs = [
        ((optim.decay(0.3), optim.adam()), torch.optim.Adam),
        ((optim.adam(), optim.decay(0.3)), torch.optim.AdamW),
    ]
    for chain, peer in pairs:
        start = torch.randn(6, dtype=torch.float64)
        ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
        one, other = optim.Descent([ours], *chain, lr=0.01), peer([theirs], lr=0.01, weight_decay=0.3)
        for _ in range(50):
            ours.grad = torch.randn(6, dtype=torch.float64)
            theirs.grad = ours.grad.clone()
            one.step()
            other.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_decoupled_decay_without_gradient_shrinks_geometrically_in_either_order():
    for after_step in (False, True):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optim.Descent([p], optim.adam(), optim.decay(0.5, after_step=after_step), lr=0.1)
        updates_of(optimizer, p, [0.0] * 20)
        assert p.item() == pytest.approx(0.95**20, rel=1e-12)


def test_decay_after_the_step_shrinks_the_step_too():
    p = nn.Parameter(torch.ones(1, dtype=torch.float64))
    updates_of(optim.Descent([p], optim.decay(0.5, after_step=True), lr=0.1), p, [2.0])
    assert p.item() == pytest.approx((1 - 0.1 * 2.0) * (1 - 0.1 * 0.5), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ({}, 2.0),
        ({"momentum": 0.9}, 2 * 1.9),
        ({"momentum": 0.9, "nesterov": True}, 2 * 1.9 / 2.8),
        ({"momentum": 0.5, "dampening": 0.5}, 2 * 1.5 / 0.5),
        ({"dampening": 0.5}, 2.0),
    ],
)
def test_descent_converges_below_its_stability_limit_and_diverges_above(arguments, limit):
    for factor, settles in ((0.98, True), (1.02, False)):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = optim.SGD([p], lr=0.1, **arguments)
        (group,) = optimizer.param_groups
        sharpness = factor * optimizer.stability_limit(group)
        assert optimizer.stability_limit(group) == pytest.approx(limit / 0.1)
        for _ in range(2000):
            p.grad = sharpness * p.detach()
            optimizer.step()
        assert (abs(p.item()) < 1e-3) == settles
        assert (abs(p.item()) > 1e3) != settles


def test_the_preconditioner_is_the_diagonal_that_multiplies_the_mean_gradient():
    p = zeros(3)
    optimizer = optim.AdamW([p], betas=(0.0, 0.9), eps=0.1)
    assert optimizer.preconditioner(p) is None
    gradient = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    (update,) = updates_of(optimizer, p, [gradient])
    torch.testing.assert_close(optimizer.preconditioner(p), 1 / (gradient.abs() + 0.1))
    torch.testing.assert_close(optimizer.preconditioner(p) * gradient, update)
    assert optim.SGD([p]).preconditioner(p) is None


def test_no_stability_limit_is_made_up():
    optimizer = optim.Lion([zeros(1)])
    with pytest.raises(ValueError, match="no stability limit is known for the chain"):
        optimizer.stability_limit(optimizer.param_groups[0])
