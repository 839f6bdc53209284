"""Which layer is the last, and what enters it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from thalweg import tasks
from thalweg.probe._head import features_and_output, head_name


class Two(nn.Module):
    """Two linear layers that make the output in turn, declared in the other order."""

    def __init__(self, again=False):
        super().__init__()
        self.last, self.first, self.again = nn.Linear(4, 3), nn.Linear(5, 4), again

    def forward(self, x):
        y = self.last(self.first(x).relu())
        if self.again:
            self.last(self.first(x))
        return {"y": y}


def test_the_layer_whose_output_is_returned_is_found_wherever_it_is_declared():
    model = nn.ModuleDict({"aside": nn.Linear(2, 2), "net": tasks.MLP((5, 4, 3), seed=0)})
    model.forward = lambda x: (model["net"](x), model["aside"](x[:, :2]))[0]
    assert head_name(model, torch.ones(2, 5)) == "net.2"
    gpt = tasks.GPT(11, 4, layers=1, heads=2, width=8, seed=0)
    assert head_name(gpt, torch.zeros(2, 4, dtype=torch.long)) == "head"


def test_else_it_is_the_last_to_run_once():
    assert head_name(Two(), torch.ones(2, 5)) == "last"
    assert head_name(Two(again=True), torch.ones(2, 5)) is None
    assert head_name(nn.ReLU(), torch.ones(2, 5)) is None
    assert head_name(nn.Sequential(nn.Linear(5, 3), nn.LogSoftmax(1)), torch.ones(2, 5)) == "0"


def test_features_are_what_the_rest_of_the_model_gives():
    model = tasks.MLP((5, 4, 3), seed=0)
    x = torch.randn(7, 5)
    features, output = features_and_output(model, x, "2")
    assert torch.equal(features, model[1](model[0](x))) and torch.equal(output, model(x))
    assert not features.requires_grad


def test_with_its_own_statistics_a_batch_is_normalised_as_in_training_and_nothing_moves():
    model = tasks.MLP((5, 4, 3), norm="batch", seed=0)
    x = 3 + torch.randn(32, 5)
    model(x)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features, _ = features_and_output(model, x, "3", own_statistics=True)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items()) and model.training
    hidden = model[0](x)
    expected = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    assert torch.allclose(features, expected.relu(), atol=1e-5)
    assert not torch.allclose(features, features_and_output(model, x, "3")[0], atol=1e-2)


def test_statistics_come_back_also_after_an_error():
    model = tasks.MLP((5, 4, 3), norm="batch", seed=0)
    with pytest.raises(RuntimeError):
        features_and_output(model, torch.ones(2, 9), "3", own_statistics=True)
    assert model[1].running_mean is not None and model.training
