"""The lazy regime: told where the loss falls and features stay, with numbers that can be checked."""

from __future__ import annotations

import pytest
import torch
from benchmarks.findings.planted import lazy_regime
from torch import nn

import thalweg
from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import gram_alignment, gram_matrix
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.lazy_regime import LazyRegime
from thalweg.watch.sensors.features import feature_alignment

NAME = "lazy regime"


def moment(model, x, memory, step=1):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    named = dict(model.named_parameters())
    return Moment(step, named, opt, model, inputs=((x,), {}), memory=memory)


def test_the_reading_is_the_alignment_and_the_change_worked_out_by_hand():
    model, x, memory = tasks.MLP((6, 16, 3), seed=0), torch.randn(40, 6), {}
    (first,) = feature_alignment.read(moment(model, x, memory))
    assert (first.value, first.extra["weight change"]) == (1.0, 0.0)
    old = model[1](model[0](x)).detach()
    weights = [p.detach().clone() for p in model[0].parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    # Later batches do not matter: the examples are those of the first visit.
    (raw,) = feature_alignment.read(moment(model, torch.randn(40, 6), memory, step=21))
    new = model[1](model[0](x)).detach()
    moved = sum((p.detach() - w).square().sum() for p, w in zip(model[0].parameters(), weights, strict=True))
    size = sum(w.square().sum() for w in weights)
    assert raw.value == pytest.approx(gram_alignment(gram_matrix(old), gram_matrix(new)), rel=1e-5)
    assert raw.extra["weight change"] == pytest.approx(float((moved / size).sqrt()), rel=1e-5)
    assert raw.extra["since"] == 1.0


def test_of_large_parameters_a_part_stands_for_the_whole():
    model, x, memory = tasks.MLP((200, 300, 3), seed=0), torch.randn(40, 200), {}
    feature_alignment.read(moment(model, x, memory))
    assert sum(one.numel() for one in memory["weights"].values()) < 3000
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.add_(0.01 * torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    (raw,) = feature_alignment.read(moment(model, x, memory))
    exact = (model[0].weight.detach() - before).norm() / before.norm()
    assert raw.extra["weight change"] == pytest.approx(float(exact), rel=0.1)


def test_the_part_is_of_every_column():
    """An input of 784 numbers whose first is always zero: only its column would be looked at."""
    model, x, memory = tasks.MLP((784, 1024, 3), seed=0), torch.randn(40, 784), {}
    feature_alignment.read(moment(model, x, memory))
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight[:, 1:] += 0.01 * torch.randn(1024, 783, generator=torch.Generator().manual_seed(0))
    (raw,) = feature_alignment.read(moment(model, x, memory))
    exact = (model[0].weight.detach() - before).norm() / before.norm()
    assert raw.extra["weight change"] == pytest.approx(float(exact), rel=0.1)


@pytest.mark.parametrize("kind", ["one layer", "frozen body", "no linear layer", "one example"])
def test_where_no_features_can_move_nothing_is_read(kind):
    x = torch.randn(1 if kind == "one example" else 8, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    if kind == "one layer":
        model = nn.Sequential(nn.Linear(4, 2))
    if kind == "frozen body":
        model[0].requires_grad_(False)
    if kind == "no linear layer":
        model = nn.Sequential(nn.LayerNorm(4), nn.Tanh())
    memory = {}
    for step in range(1, 4):
        assert feature_alignment.read(moment(model, x, memory, step)) == []


def rows(losses, alignment, change, since=2):
    found, rule = [], LazyRegime({"optimizer": "SGD", "lr": 0.1})
    for step, loss in enumerate(losses, 1):
        found += rule.see(Reading(step, "loss", loss))
        if (step - since) % 20 == 0 and step >= since:
            extra = {"weight change": change if step > since else 0.0, "since": float(since)}
            value = alignment if step > since else 1.0
            found += rule.see(Reading(step, "feature alignment", value, {}, extra))
    return found


FALLING = [2.0 * 0.98**step for step in range(200)]


def test_it_is_told_once_with_its_numbers_and_thresholds():
    (found,) = rows(FALLING, 0.99, 0.01)
    assert found.name == NAME and found.severity == "info"
    assert found.evidence["feature alignment"] == 0.99 >= found.evidence["threshold"]
    assert found.evidence["loss over what it was"] <= found.evidence["most loss over what it was"]
    # The loss is below 0.3 of its start from step 60 on, its median over 20 steps from step 70 on.
    assert 60 <= found.step <= 90


@pytest.mark.parametrize(
    ("losses", "alignment", "change", "since"),
    [
        (FALLING, 0.9, 0.01, 2),
        (FALLING, 0.99, 0.2, 2),
        ([2.0 * 0.998**step for step in range(200)], 0.99, 0.01, 2),
        # Features kept when the loss had fallen already say nothing.
        ([2.0 if step < 10 else 0.1 for step in range(200)], 0.99, 0.01, 100),
    ],
    ids=["features move", "weights move", "loss stays", "looked too late"],
)
def test_it_is_not_told_where_one_sign_is_missing(losses, alignment, change, since):
    found = rows(losses, alignment, change, since)
    if since == 2:
        assert found == []
    else:
        assert rows(losses, alignment, change, 2) != [] and found == []


@pytest.mark.parametrize("scenario", [lazy_regime.MLP, lazy_regime.CNN], ids=["MLP", "CNN"])
def test_a_large_output_scale_is_named_and_its_twin_is_not(scenario, monkeypatch):
    # The other sensors would only cost time.
    monkeypatch.setattr("thalweg.watch.senses.all_sensors", lambda: [feature_alignment])
    planted, twin = (scenario.outcome(100, fault) for fault in (True, False))
    assert NAME in {one.name for one in planted.findings}
    assert NAME not in {one.name for one in twin.findings}
    # Both fit; only one of them learns features.
    assert planted.losses[-1] < 0.3 * planted.losses[0] and twin.losses[-1] < 0.3 * twin.losses[0]


def test_remedies_run_as_pasted_and_papers_are_there():
    (found,) = rows(FALLING, 0.99, 0.01)
    for key in {*found.papers, *(one.paper for one in found.remedies)}:
        assert papers.find(key).key == key
    model = tasks.MLP((8, 8, 4), seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    before, norms = model(torch.ones(1, 8)).norm().item(), []
    opt.register_step_pre_hook(lambda *_: norms.append(model(torch.ones(1, 8)).norm().item()))
    for remedy in found.remedies:
        paste(remedy.code, model, opt, batches(3))
    assert norms[0] == pytest.approx(0.1 * before, rel=1e-4)
    assert opt.param_groups[0]["lr"] == pytest.approx(0.3)


def test_it_reads_in_a_watched_run_and_changes_nothing(small):
    state = {name: value.clone() for name, value in small.model.state_dict().items()}
    with thalweg.watch(small.model, small.opt, budget=1e9, store=None) as run:
        small.train(3, run)
        assert "feature alignment" not in run.disabled
    assert state.keys() == small.model.state_dict().keys()


def test_features_of_an_expert_which_is_given_some_of_the_examples_are_left_alone():
    class Experts(nn.Module):
        """Each example goes to the expert that the sign of its first number names."""

        def __init__(self):
            super().__init__()
            self.first, self.experts = nn.Linear(6, 8), nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 3)])

        def forward(self, x):
            hidden, chosen = self.first(x).relu(), (x[:, 0] > 0).long()
            out = hidden.new_zeros(len(x), 3)
            for index, expert in enumerate(self.experts):
                out[chosen == index] = expert(hidden[chosen == index])
            return out

    torch.manual_seed(0)
    model, memory, x = Experts(), {}, torch.randn(40, 6)
    assert feature_alignment.read(moment(model, x, memory)) == []
    assert "some of the examples" in memory["silent"] and memory["over"]
    # All of them at first, and later a part.
    memory = {}
    x[:, 0] = 0.1
    assert len(feature_alignment.read(moment(model, x, memory))) == 1
    memory["batch"][0][:10, 0] = -1.0
    assert feature_alignment.read(moment(model, x, memory, step=2)) == [] and memory["over"]
