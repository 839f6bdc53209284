"""Loops over recurrent cells have depth in time; what has too little depth is said not to be judged."""

import pytest
import torch
from torch import nn

import thalweg
from thalweg.probe import backward_signal


class Loop(nn.Module):
    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out = kind(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        state = None
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.LSTMCell, nn.GRUCell])
def test_the_error_is_heard_at_every_step_of_a_cell(kind):
    model, x = Loop(kind), torch.randn(5, 6, 8)
    found = backward_signal(model, x)
    assert list(found.norms) == [f"cell[{step}]" for step in range(6)] + ["out"]
    error = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert found.norms["cell[5]"] == pytest.approx((error @ model.out.weight).norm().item(), rel=1e-5)


def watched(model, x):
    opt = torch.optim.SGD(model.parameters(), lr=1e-3)
    with thalweg.watch(model, opt, store=None, budget=1e9) as run:
        for _ in range(35):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
    return run


def test_a_cell_that_forgets_has_a_vanishing_gradient():
    model = Loop(nn.RNNCell)
    with torch.no_grad():
        model.cell.weight_hh.mul_(0.2)
    (found,) = watched(model, torch.randn(16, 20, 8)).findings
    assert found.name == "vanishing gradient" and found.layers == ("cell",)


def test_what_has_fewer_than_four_layers_is_said_not_to_be_judged():
    run = watched(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3)), torch.randn(16, 8))
    assert run.left_out()["backward signal"].endswith("heard were 0, 2")
    assert "backward signal" not in watched(Loop(nn.RNNCell), torch.randn(16, 20, 8)).left_out()
