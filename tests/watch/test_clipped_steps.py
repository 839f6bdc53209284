"""Steps whose gradients come clipped are stable where the rate that clipping leaves is."""

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import clip_gradients
from thalweg.watch.clipped import left_by_clipping
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.curvature import tracked_sharpness
from thalweg.watch.sensors.gradient_noise import gradient_noise

CURVATURES = torch.tensor([80.0, 10.0], dtype=torch.float64)


class Bowl(nn.Module):
    """Its loss is a quadratic with these curvatures, whatever the batch adds to the gradient."""

    def __init__(self, start):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, push):
        return (CURVATURES * self.x.square()).sum() / 2 + (self.x * push).sum(-1).mean()


def loss_fn(model, batch):
    return model(batch)


def moment(model, opt, step, batch):
    return Moment(step, {"x": model.x}, opt, model, loss_fn, batch)


def stepped(opt, model, batch, clip=None):
    opt.zero_grad()
    loss_fn(model, batch).backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1), lambda p: torch.optim.Adam(p, 0.1)])
def test_the_limit_is_that_of_the_rate_which_clipping_leaves(make):
    model, batch = Bowl([1.0, 1.0]), torch.zeros(4, 2)
    opt = make(model.parameters())
    memory = {}
    for step in (1, 2):
        at = moment(model, opt, step, batch)
        at.memory = memory
        stepped(opt, model, batch, clip=0.5)
        whole = (CURVATURES * model.x.detach()).norm().item()
        found = tracked_sharpness.read(at)
        opt.step()
    (reading,) = found
    plain = {"SGD": 2 / 0.1, "Adam": 2 * 1.9 / (0.1 * 0.1)}[type(opt).__name__]
    assert reading.extra["left by clipping"] == pytest.approx(0.5 / whole, rel=1e-3)
    assert reading.extra["limit"] == pytest.approx(plain * whole / 0.5, rel=1e-3)
    assert reading.extra["ratio"] == pytest.approx(float(reading.value) / reading.extra["limit"])


def test_the_share_left_is_asked_for_only_where_norms_repeat_as_the_largest():
    model, calls = Bowl([1.0, 1.0]), []
    opt = torch.optim.SGD(model.parameters(), 0.1)

    def counting(model, batch):
        calls.append(1)
        return model(batch)

    memory, shares = {}, []
    for clip, push in ((None, 0.0), (9.0, 0.0), (9.0, 0.0), (None, 1.0), (None, 2.0)):
        batch = torch.full((4, 2), push)
        stepped(opt, model, batch, clip)
        at = moment(model, opt, 1, batch)
        at.loss_fn, at.memory = counting, memory
        shares.append(left_by_clipping(at, [model.x]))
    # The first norm was larger than any clipped one: that clipping began later is not known.
    assert shares == [1.0] * 5 and calls == []
    memory.clear()
    for scale in (1.0, 8.0):
        stepped(opt, model, batch, 9.0)
        model.x.grad.mul_(scale)
        at = moment(model, opt, 1, batch)
        at.loss_fn, at.memory, at.scale = counting, memory, scale
        shares.append(left_by_clipping(at, [model.x]))
    whole = (CURVATURES + 2.0).norm().item()
    assert shares[-2:] == [1.0, pytest.approx(9.0 / whole, rel=1e-4)] and len(calls) == 1


def edges(clip):
    model = Bowl([100.0, 0.0])
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    if clip:
        clip_gradients(opt, 1.0)
    with thalweg.watch(model, opt, loss_fn=loss_fn, store=None, budget=1e9) as run:
        for _ in range(60):
            batch = torch.zeros(4, 2)
            loss = loss_fn(model, batch)
            opt.zero_grad()
            loss.backward()
            run.log(loss=loss, batch=batch)
            opt.step()
    assert run.disabled == {}
    return [one.severity for one in run.findings if one.name == "edge of stability"], model.x[0].item()


def test_clipped_descent_at_four_times_the_limit_is_no_finding_and_without_clipping_is_one():
    assert edges(clip=True) == ([], pytest.approx(94.0))
    severities, end = edges(clip=False)
    assert severities == ["warning"] and abs(end) > 1e20


def test_noise_of_clipped_steps_is_that_of_the_rate_which_clipping_leaves():
    torch.manual_seed(0)
    model, batch = Bowl([1.0, 1.0]), torch.randn(64, 2, dtype=torch.float64)

    def read(rate, clip):
        opt, memory = torch.optim.SGD(model.parameters(), rate), {}
        for step in (1, 2):
            at = moment(model, opt, step, batch)
            at.memory = memory
            stepped(opt, model, batch, clip)
            found = gradient_noise.read(at)[0].extra
        return found["step"], found["gain"]

    loss_fn(model, batch).backward()
    whole = model.x.grad.norm().item()
    assert read(0.1, clip=whole / 10) == pytest.approx(read(0.01, clip=None), rel=1e-3)
