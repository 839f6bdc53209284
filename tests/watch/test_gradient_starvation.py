"""Gradient starvation while a run goes on: the reading against explicit Jacobians, and the rule."""

import pytest
import torch
from torch import nn

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import gradient_starvation
from thalweg.watch import Reading, all_rules
from thalweg.watch.moment import Moment
from thalweg.watch.sensors.starvation import starvation


def moment(model, inputs, targets, memory=None):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    named = dict(model.named_parameters())
    memory = {} if memory is None else memory
    return Moment(1, named, opt, model, inputs=((inputs,), {}), targets=targets, memory=memory)


@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_the_reading_follows_from_the_jacobian_of_the_margins(kind):
    split = tasks.handwritten_digits(64, shape="flat" if kind == "mlp" else "image", seed=0)
    inputs, targets = split.train[0].double(), split.train[1]
    model = (tasks.MLP((64, 32, 10), seed=0) if kind == "mlp" else tasks.CNN(width=4, seed=0)).double()
    model.eval()  # the CNN normalises by the batch in training mode, see below
    (found,) = starvation.read(moment(model, inputs, targets))
    explicit = gradient_starvation(model, inputs, targets)
    along, margins = explicit.features.sum(0), explicit.margins
    assert float(found.value) == pytest.approx((along[:10].square().sum() / 64).item(), rel=1e-4)
    share = (along * explicit.responses)[:10].sum() / margins.sum()
    assert float(found.extra["share"]) == pytest.approx(share.item(), rel=1e-4)
    assert float(found.extra["miss"]) == pytest.approx(torch.sigmoid(-margins).mean().item(), rel=1e-5)
    scatter = (margins.std() / margins.mean().abs()).item()
    assert float(found.extra["scatter"]) == pytest.approx(scatter, rel=1e-5)
    strong = int((explicit.strengths >= 0.1 * explicit.strengths[0]).sum())
    assert int(found.extra["others"]) == max(strong - 10, 0)
    assert not any(torch.as_tensor(value).requires_grad for value in found.extra.values())


def test_examples_that_are_answered_alike_are_held_by_one_feature_a_class():
    """Two points, many times each: the kernel has rank two, and nothing is left for a third feature."""
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(16, 1)
    targets = torch.tensor([0, 1]).repeat(16)
    (found,) = starvation.read(moment(nn.Linear(2, 2), inputs, targets))
    assert float(found.value) == pytest.approx(1.0) and int(found.extra["others"]) == 0


@pytest.mark.parametrize(
    ("model", "inputs", "targets"),
    [
        (nn.Linear(4, 30), torch.randn(64, 4), torch.randint(0, 30, (64,))),  # too many classes
        (nn.Linear(4, 3), torch.randn(8, 4), torch.randint(0, 3, (8,))),  # too few examples
        (nn.Linear(4, 3), torch.randn(64, 4), torch.randn(64, 3)),  # no classes
        (nn.Linear(4, 3), torch.randn(64, 5, 4), torch.randint(0, 3, (64, 5))),  # sequences
    ],
)
def test_runs_of_another_kind_give_nothing(model, inputs, targets):
    memory = {}
    assert starvation.read(moment(model, inputs, targets, memory)) == []
    assert memory["silent"]


def test_gradients_modes_and_random_state_stay_as_they_are():
    split = tasks.handwritten_digits(64, seed=0)
    model = tasks.MLP((64, 32, 10), seed=0).train()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    state = torch.get_rng_state()
    assert starvation.read(moment(model, *split.train))
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


def rows(held, scatter, misses=(0.5, 0.3, 0.1, 0.04, 0.02, 0.01, 0.005, 0.004), others=5.0):
    held = [held] * len(misses) if isinstance(held, float) else held
    for index, (value, miss) in enumerate(zip(held, misses, strict=True), start=1):
        extra = {"miss": miss, "scatter": scatter, "share": 0.9, "others": others, "features": 2.0}
        yield Reading(10 * index, "strongest features", value, {}, extra)


def feed(readings, about=None):
    rules = all_rules(about or {"optimizer": "SGD", "lr": 0.1})
    (rule,) = (one for one in rules if one.name == "gradient starvation")
    return [one for reading in readings for one in rule.see(reading)]


def test_one_feature_a_class_that_answers_all_is_said_once_as_information():
    (found,) = feed(rows(0.97, 0.1))
    assert found.step == 40 and found.severity == "info"
    assert found.evidence["held by the strongest"] > found.evidence["threshold"]


@pytest.mark.parametrize(
    "quiet",
    [
        rows(0.85, 0.1),
        rows(0.97, 0.4),  # examples are answered to different degrees
        rows(0.97, 0.1, others=0.0),  # nothing is there to starve
        rows(0.97, 0.1, misses=(0.01,) * 8),  # was not seen to learn
        rows([0.5] * 6 + [0.97] * 2, 0.1),  # classes collapse late in every run
    ],
)
def test_an_ordinary_run_is_not_called_starved(quiet):
    assert feed(quiet) == []


def test_the_remedy_runs_as_pasted_and_its_paper_is_in_the_catalog():
    (found,) = feed(rows(0.97, 0.1))
    assert papers.find(found.papers[0]).key == "gradient-starvation"
    (remedy,) = found.remedies
    model = nn.Linear(8, 4)
    names, _ = paste(remedy.code, model, torch.optim.SGD(model.parameters(), lr=0.1), batches(3))
    logits, targets = torch.randn(16, 2), torch.randint(0, 2, (16,))
    expected = nn.functional.cross_entropy(logits, targets) + 0.1 * logits.square().mean()
    assert torch.allclose(names["loss_fn"](nn.Identity(), (logits, targets)), expected)


@pytest.mark.parametrize("have", [64, 96])
def test_where_examples_are_normalised_together_the_reading_is_of_training(have):
    torch.manual_seed(0)
    layers = nn.Linear(5, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.5), nn.Linear(12, 2)
    model, inputs = nn.Sequential(*layers).double(), torch.randn(have, 5, dtype=torch.float64) + 1
    targets = (inputs[:, 0] > 1).long()
    before = {name: b.clone() for name, b in model.named_buffers()}
    (found,) = starvation.read(moment(model, inputs, targets))
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    h = model[0](inputs)
    h = (h - h.mean(0)) / (h.var(0, correction=0) + model[1].eps).sqrt()
    logits = model[4]((h * model[1].weight + model[1].bias).tanh())
    margins = (logits[:, 1] - logits[:, 0]) * (2 * targets - 1)
    rows = [torch.autograd.grad(m, model.parameters(), retain_graph=True) for m in margins[:64]]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    features, strengths, _ = torch.linalg.svd(jacobian, full_matrices=False)
    strong = strengths >= 0.1 * strengths[0]
    held = features.sum(0)[strong].square().sort().values[-2:].sum().item() / 64
    assert float(found.value) == pytest.approx(held, rel=1e-6)
    assert int(found.extra["others"]) == int((strengths >= 0.1 * strengths[0]).sum()) - 2
    miss = torch.sigmoid(-margins[:64]).mean().item()
    assert float(found.extra["miss"]) == pytest.approx(miss, rel=1e-9)


def test_a_large_model_that_normalises_examples_together_is_left_alone_with_a_reason(monkeypatch):
    monkeypatch.setattr("thalweg.watch.sensors.starvation.WEIGHTS", 20)
    memory = {}
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    at = moment(model, torch.randn(64, 4), torch.randint(0, 2, (64,)), memory)
    assert starvation.read(at) == [] and "normalised together" in memory["silent"]


def test_of_features_that_are_nearly_as_strong_those_count_that_hold_most(monkeypatch):
    """One a class of all that are at least a tenth as strong as the strongest, whatever their order."""
    along = torch.tensor([0.1, 0.2, 4.0, 3.0, 6.0] + [0.0] * 59, dtype=torch.float64)
    strengths = torch.tensor([1.0, 0.95, 0.9, 0.5, 0.05] + [0.01] * 59, dtype=torch.float64)
    given = torch.ones(64, dtype=torch.float64), strengths, torch.diag(along)
    monkeypatch.setattr("thalweg.watch.sensors.starvation._features", lambda at: given)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    batch = torch.randn(64, 4), torch.randint(0, 2, (64,))
    (found,) = starvation.read(moment(model, *batch))
    assert float(found.value) == pytest.approx((16 + 9) / 64) and float(found.extra["others"]) == 2
    (found,) = starvation.read(moment(model.eval(), *batch))
    assert float(found.value) == pytest.approx((0.01 + 0.04) / 64)
