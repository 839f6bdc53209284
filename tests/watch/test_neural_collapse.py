"""Neural collapse: told where every sign is there, and not on the way."""

from __future__ import annotations

import pytest
import torch
from benchmarks.findings.planted import neural_collapse as planted_runs
from torch import nn

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.probe import neural_collapse_of
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.neural_collapse import NeuralCollapse
from thalweg.watch.sensors.class_features import class_features

NAME = "neural collapse reached"


def clusters(count, classes, spread, seed=0):
    """Inputs about the corners of a simplex, and a model whose features are its inputs."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(count // classes)
    inputs = 5 * nn.functional.one_hot(labels, classes).float()
    return inputs + spread * torch.randn(inputs.shape, generator=source), labels


def moment(model, inputs, labels, memory, evaluate=None):
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    named = dict(model.named_parameters())
    output = model(inputs).detach()
    at = Moment(1, named, opt, model, inputs=((inputs,), {}), output=output, targets=labels, memory=memory)
    at.evaluate = evaluate
    return at


def plain_model(classes):
    model = nn.Sequential(nn.ReLU(), nn.Linear(classes, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(classes))
        model[1].bias.zero_()
    return model


def test_the_reading_is_the_probes_on_the_features_with_the_bias_of_few_examples_taken_out():
    inputs, labels = clusters(60, 3, 0.5)
    model = plain_model(3)
    (raw,) = class_features.read(moment(model, inputs, labels, {}))
    exact = neural_collapse_of(inputs.relu(), labels, model[1].weight, model[1].bias)
    assert raw.value == pytest.approx(exact.variability * 60 / 57)
    assert raw.extra["nc1"] == pytest.approx(exact.nc1) and raw.extra["nc4"] == 0 == raw.extra["error"]


def test_few_examples_give_the_scatter_of_many_on_average():
    model, small = plain_model(3), []
    many = class_features.read(moment(model, *clusters(510, 3, 0.5), {}))[0].value
    for seed in range(40):
        small.append(class_features.read(moment(model, *clusters(15, 3, 0.5, seed), {}))[0].value)
    assert sum(small) / 40 == pytest.approx(many, rel=0.1)


def test_batches_are_gathered_and_the_training_set_is_preferred():
    inputs, labels = clusters(60, 3, 0.5)
    model, memory = plain_model(3), {}
    # Two examples a class are too few; three such batches are enough.
    parts = [(inputs[k : k + 6], labels[k : k + 6]) for k in range(0, 60, 6)]
    reads = [class_features.read(moment(model, *part, memory)) for part in parts]
    assert [len(one) for one in reads] == [0, 0, *([1] * 8)]
    whole = class_features.read(moment(model, *parts[0], {}, ((inputs, labels), None)))
    assert reads[-1][0].value == pytest.approx(whole[0].value)


@pytest.mark.parametrize("kind", ["tokens", "regression", "not fitted", "one class", "other head"])
def test_where_there_are_no_classes_or_nothing_is_fitted_nothing_is_read(kind):
    inputs, labels = clusters(60, 3, 0.5)
    model = plain_model(3)
    if kind == "not fitted":
        labels = labels.roll(1)
    if kind == "one class":
        inputs, labels = inputs[labels == 0], labels[labels == 0]
    at = moment(model, inputs, labels, {})
    if kind == "tokens":
        at.output, at.targets = at.output.unsqueeze(1), at.targets.unsqueeze(1)
    if kind == "regression":
        at.targets = at.targets.float()
    if kind == "other head":
        at.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3, bias=False), nn.Flatten(0))
    assert class_features.read(at) == []


SIGNS = {"error": 0.0, "classes": 5.0, "nc1": 0.02, "nc2": 0.1, "norms": 0.05, "nc3": 0.1, "nc4": 0.0}


def feed(values, **signs):
    rule = NeuralCollapse({})
    return [
        one
        for step, value in enumerate(values, 1)
        for one in rule.see(Reading(20 * step, "neural collapse", value, {}, {**SIGNS, **signs}))
    ]


def test_it_is_told_once_at_the_first_of_three_readings():
    (found,) = feed([0.4, 0.2, 0.1, 0.04, 0.06, 0.04, 0.03, 0.02, 0.01])
    assert (found.name, found.severity, found.step) == (NAME, "info", 120)
    assert found.evidence["variability"] == 0.02 <= found.evidence["threshold"] == 0.05
    assert found.evidence["at first fit"] == 0.4


@pytest.mark.parametrize(
    ("values", "signs"),
    [
        ([0.4, *[0.06] * 20], {}),
        ([0.03] * 20, {}),
        ([0.4, *[0.02] * 20], {"error": 0.01}),
        ([0.4, *[0.02] * 20], {"norms": 0.3}),
        ([0.4, *[0.02] * 20], {"nc4": 0.05}),
        ([0.4, 0.02, 0.02], {}),
    ],
    ids=["loose", "as tight as in the inputs", "errors", "unequal", "another class is nearer", "too short"],
)
def test_it_is_not_told_where_a_sign_is_missing(values, signs):
    assert feed(values, **signs) == []


@pytest.mark.parametrize("scenario", [planted_runs.CLUSTERS, planted_runs.DIGITS])
def test_training_far_past_zero_error_is_named_and_a_run_that_ends_before_is_not(scenario, monkeypatch):
    # The other sensors would only cost time.
    monkeypatch.setattr("thalweg.watch.senses.all_sensors", lambda: [class_features])
    planted, twin = (scenario.outcome(100, fault) for fault in (True, False))
    assert NAME in {one.name for one in planted.findings}
    assert NAME not in {one.name for one in twin.findings}


def test_remedies_run_as_pasted_and_papers_are_there():
    (found,) = feed([0.4, 0.02, 0.02, 0.02])
    assert all(papers.find(key).key == key for key in found.papers)
    assert all(papers.find(remedy.paper) for remedy in found.remedies)
    kept, decay = (remedy.code for remedy in found.remedies)
    model = tasks.MLP((8, 8, 4), seed=0)
    opt = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    names, _ = paste(kept, model, opt, batches(found.step))
    assert torch.equal(names["kept"][found.step]["0.weight"], model[0].weight)
    paste(decay, model, opt, batches(1))
    assert opt.param_groups[0]["weight_decay"] == 0.05


def test_a_training_set_sorted_by_class_gives_examples_of_all():
    inputs, labels = clusters(1200, 4, 0.5)
    order = labels.argsort(stable=True)
    inputs, labels, model = inputs[order], labels[order], plain_model(4)
    (raw,) = class_features.read(moment(model, inputs[:6], labels[:6], {}, ((inputs, labels), None)))
    assert raw.extra["classes"] == 4
    whole = neural_collapse_of(inputs.relu(), labels).variability
    assert raw.value == pytest.approx(whole, rel=0.15)


def test_a_model_may_flatten_the_training_set_as_a_view():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain_model(3)

        def forward(self, x):
            return self.inner(x.view(-1).view(-1, 3))

    inputs, labels = clusters(1200, 3, 0.5)
    (raw,) = class_features.read(moment(Flat(), inputs, labels, {}, ((inputs, labels), (inputs, labels))))
    (plain,) = class_features.read(moment(plain_model(3), inputs, labels, {}, ((inputs, labels),) * 2))
    assert raw.value == plain.value
