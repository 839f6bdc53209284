"""Parts in one model, compiled to machine code and exported: what each owes torch, for one compilation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thalweg.nn import (
    Elephant,
    LateDropout,
    RandomizedLinear,
    RateDropout,
    TrAct,
    TwoStageLabelSmoothing,
    WeightCompander,
    convert,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.hidden = nn.Linear(4, 8)
        self.act = nn.ReLU()
        self.drop = nn.Dropout(0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        rows = self.stem(x).flatten(2).mT
        return self.head(self.drop(self.act(self.hidden(rows)))).mean(1)


PARTS = {
    "stem": TrAct.of,
    "hidden": lambda layer: WeightCompander.of(layer, 2.0),
    "act": lambda _: Elephant(0.5, units=8),
    "drop": RateDropout.of,
    "head": lambda layer: RandomizedLinear.of(layer, ratio=0.1),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return convert(Net(), PARTS)


X, Y = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3


def two_steps(model, run, loss_fn):
    """Losses, gradients and state after two updates."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    torch.manual_seed(2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = loss_fn(run(X), Y)
        loss.backward()
        optimizer.step()
        loss_fn.step()
        seen += [loss.detach(), *[p.grad.clone() for p in model.parameters()]]
    return seen + list(model.state_dict().values())


def test_compiled_equals_eager_in_training(model):
    twin = copy.deepcopy(model)
    expected = two_steps(model, model, TwoStageLabelSmoothing(1))
    # Seeds come from the generator that eager uses, so that the projections are the same.
    with torch._inductor.config.patch(fallback_random=True):
        found = two_steps(twin, torch.compile(twin, fullgraph=True), TwoStageLabelSmoothing(1))
    assert len(found) == len(expected)
    for one, reference in zip(found, expected, strict=True):
        assert torch.allclose(one, reference, atol=1e-5, rtol=1e-4)


def test_exported_equals_eager_in_evaluation(model):
    model.eval()
    exported = torch.export.export(model, (X,)).module()
    assert torch.allclose(exported(X), model(X), atol=1e-6)


def test_a_state_dict_restores_everything_and_goes_through_a_safe_file(model, tmp_path):
    torch.manual_seed(5)
    other = convert(Net(), PARTS)
    two_steps(model, model, TwoStageLabelSmoothing(1))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    assert torch.equal(other.eval()(X), model.eval()(X))


def test_a_schedule_reaches_the_converted_dropout(model):
    LateDropout(model, 0.5, steps=0)
    assert model.drop.p == 0.5 and not torch.equal(model(X), model(X))
