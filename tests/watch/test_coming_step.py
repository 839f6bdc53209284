"""Adam's preconditioner where gradients are rare: what a step brings, not what the past was without it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from thalweg.probe import preconditioner_of
from thalweg.watch.coming_step import behind
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.curvature import tracked_sharpness


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(steps=300):
    """A linear model under Adam, of whose five features the last has never been seen; a batch with it."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        inputs = torch.randn(32, 5).double() * torch.tensor([1, 1, 1, 1, 0])
        opt.zero_grad()
        loss_fn(model, (inputs, torch.randint(3, (32,)))).backward()
        opt.step()
    inputs = torch.randn(64, 5).double() * torch.tensor([1, 1, 1, 1, 0])
    inputs[:3, 4] = 1.0
    return model, opt, (inputs, torch.randint(3, (64,)))


def stepped(opt, model, batch):
    """The preconditioner behind a real step on the batch."""
    model, state = copy.deepcopy(model), copy.deepcopy(opt.state_dict())
    opt = torch.optim.Adam(model.parameters(), lr=1e-3)
    opt.load_state_dict(state)
    opt.zero_grad()
    loss_fn(model, batch).backward()
    opt.step()
    return preconditioner_of(opt, model.parameters())


def largest(model, batch, diagonal):
    """Of the explicit preconditioned Hessian."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(flat):
        return F.cross_entropy(batch[0] @ flat[:15].view(3, 5).T + flat[15:], batch[1])

    root = torch.cat([one.flatten() for one in diagonal]).sqrt()
    hessian = torch.autograd.functional.hessian(loss, flat)
    return torch.linalg.eigvalsh(root[:, None] * hessian * root)[-1].item()


def test_sharpness_is_that_behind_a_step_and_not_that_of_a_past_without_the_gradient():
    model, opt, batch = trained()
    at = Moment(301, dict(model.named_parameters()), opt, model, loss_fn, batch)
    found = [raw for _ in range(8) for raw in tracked_sharpness.read(at)][-1]
    before = largest(model, batch, preconditioner_of(opt, model.parameters()))
    after = largest(model, batch, stepped(opt, model, batch))
    assert before > 1e4 * after
    # The bound leaves Adam's correction for the first steps out.
    assert found.value == pytest.approx(after * (1 - 0.999**301) ** -0.5, rel=0.05)


def test_the_bound_holds_behind_every_step_and_leaves_usual_gradients_as_they_are():
    model, opt, batch = trained()
    params = list(model.parameters())
    gradients = torch.autograd.grad(loss_fn(model, batch), params)
    past = preconditioner_of(opt, params)
    bounded = behind(opt, params, past, gradients)
    # v / (1 - beta2^t), and beta2 v of the past beside the new square.
    slack = (0.999 * (1 - 0.999**301)) ** -0.5
    for real, one in zip(stepped(opt, model, batch), bounded, strict=True):
        assert bool((real <= slack * one).all())
    assert torch.equal(bounded[0][:, :4], past[0][:, :4])
    assert bool((bounded[0][:, 4] < 1e-3 * past[0][:, 4]).all())


def test_an_optimizer_without_a_second_moment_and_a_missing_gradient_change_nothing():
    p = torch.nn.Parameter(torch.ones(3))
    for opt in (torch.optim.SGD([p], lr=0.1), torch.optim.Adam([p], lr=0.1)):
        (one,) = behind(opt, [p], [torch.ones(3)], [None])
        assert torch.equal(one, torch.ones(3))
    (one,) = behind(torch.optim.SGD([p], lr=0.1), [p], [torch.ones(3)], [torch.full((3,), 1e9)])
    assert torch.equal(one, torch.ones(3))
