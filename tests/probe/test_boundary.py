from __future__ import annotations

import pytest
import torch
from torch import nn

from thalweg.probe import boundary_points
from thalweg.tasks import MLP


def test_points_of_a_linear_classifier_lie_on_its_hyperplane():
    model = nn.Linear(3, 2).double()
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = boundary_points(model, x, halvings=45)
    margin = model(found) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert margin.abs().max() < 1e-12


def test_each_keeps_the_class_of_its_start_and_lies_between_it_and_another_class():
    model = MLP((4, 32, 5), seed=0)
    with torch.no_grad():
        model[0].weight *= 5
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    found = boundary_points(model, x, seed=3)
    predicted = model(x).argmax(1)
    assert torch.equal(model(found).argmax(1), predicted)
    top = model(found).topk(2, dim=1).values
    spread = model(x).detach().std()
    assert ((top[:, 0] - top[:, 1]) / spread).max() < 1e-3
    assert not torch.allclose(found, boundary_points(model, x, seed=4))


def test_one_class_has_no_boundary():
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    with pytest.raises(ValueError, match="two predicted classes or more, got one"):
        boundary_points(model, torch.randn(5, 2))
    with pytest.raises(ValueError, match=r"logits \(points, classes\), got \(5, 2, 2\)"):
        boundary_points(model, torch.randn(5, 2, 2))


def test_many_points_are_paired_part_by_part_as_few_are(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Linear(2, 3), torch.randn(90, 2)
    whole = boundary_points(model, x)
    monkeypatch.setattr("thalweg.probe.boundary.PAIRS", 400)
    assert torch.equal(boundary_points(model, x), whole)
    predicted = model(x).argmax(1)
    draws = torch.rand(90, 90, generator=torch.Generator().manual_seed(0))
    partner = (draws * (predicted[:, None] != predicted)).argmax(1)
    beside = ((x[partner] - x) / (x[partner] - x).norm(dim=1, keepdim=True)).double()
    along = ((whole - x) / (whole - x).norm(dim=1, keepdim=True)).double()
    assert float((beside * along).sum(1).min()) > 1 - 1e-4  # on the way to the partner that is drawn
