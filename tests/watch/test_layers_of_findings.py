"""Findings of curvature and features name the layers that they are about."""

import pytest
import torch
from torch import nn

from thalweg import tasks
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.edge_of_stability import EdgeOfStability
from thalweg.watch.rules.lazy_regime import LazyRegime
from thalweg.watch.rules.neural_collapse import NeuralCollapse
from thalweg.watch.sensors.class_features import class_features
from thalweg.watch.sensors.curvature import tracked_sharpness
from thalweg.watch.sensors.features import feature_alignment


def test_sharpness_is_shared_out_by_the_leading_eigenvector_of_the_explicit_hessian():
    torch.manual_seed(0)
    model, x, y = tasks.MLP((3, 4, 2), seed=0).double(), torch.randn(20, 3).double(), torch.randn(20, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return (model(batch[0]) - batch[1]).square().sum(1).mean()

    named = dict(model.named_parameters())
    at = Moment(1, named, opt, model, loss_fn, (x, y.double()))
    found = [raw for _ in range(12) for raw in tracked_sharpness.read(at)][-1]

    def loss(*values):
        moved = dict(zip(named, values, strict=True))
        return loss_fn(lambda x: torch.func.functional_call(model, moved, x), at.batch)

    sizes = [p.numel() for p in named.values()]
    blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in named.values()))
    rows = [torch.cat([b.reshape(n, -1) for b in row], 1) for n, row in zip(sizes, blocks, strict=True)]
    values, vectors = torch.linalg.eigh(torch.cat(rows))
    expected = [values[-1] * part.square().sum() for part in vectors[:, -1].split(sizes)]
    assert found.layers == tuple(named) and found.value == pytest.approx(values[-1].item(), rel=1e-4)
    assert found.values.tolist() == pytest.approx([float(one) for one in expected], abs=1e-3 * found.value)
    assert found.values.sum().item() == pytest.approx(found.value)


def test_the_edge_of_stability_names_the_layers_with_most_of_the_curvature():
    rule = EdgeOfStability({"optimizer": "SGD", "adaptive": False, "lr": 0.1})
    numbers = {"limit": 20.0, "ratio": 3.0, "lr": 0.1}
    parts = {"first": 5.0, "second": 40.0, "third": 1.0, "head": 14.0}
    (found,) = rule.see(Reading(100, "sharpness", 60.0, parts, numbers))
    assert found.layers == ("second", "head", "first")


def test_what_is_said_of_features_names_the_layer_that_they_enter():
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x, labels = torch.randn(30, 6), torch.arange(30) % 3
    opt = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        opt.step()
    at = Moment(1, dict(model.named_parameters()), opt, model, inputs=((x,), {}), targets=labels)
    at.output = model(x).detach()
    (aligned,) = feature_alignment.read(at)
    at.memory = {}
    (scatter,) = class_features.read(at)
    assert aligned.layers == scatter.layers == ("2",)

    lazy, collapse = LazyRegime({}), NeuralCollapse({})
    signs = {"error": 0.0, "classes": 3.0, "norms": 0.0, "nc1": 0.1, "nc2": 0.1, "nc3": 0.1, "nc4": 0.0}
    found = []
    for step in range(1, 200):
        found += lazy.see(Reading(step, "loss", 2.0 if step < 21 else 0.1))
        if step % 20 == 0:
            numbers = {"since": 20.0, "weight change": 0.01}
            found += lazy.see(Reading(step, "feature alignment", 0.99, {"2": 0.99}, numbers))
            scattered = 1.0 if step == 20 else 1e-6
            found += collapse.see(Reading(step, "neural collapse", scattered, {"2": scattered}, signs))
    assert {one.name: one.layers for one in found} == {
        "lazy regime": ("2",),
        "neural collapse reached": ("2",),
    }
