"""Evaluations are heard at no cost, and those of something else than the trained model are named."""

from __future__ import annotations

import copy

import pytest
import torch
from benchmarks.findings.planted import evaluation as planted_runs
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import thalweg
from readme_loop import batches, paste
from thalweg import optim, papers, tasks
from thalweg.watch import Reading
from thalweg.watch.evaluations import holds_average
from thalweg.watch.rules.evaluation import WrongEvaluation

NAME = "evaluation with the wrong weights"
INPUTS = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(32) % 4


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4))


def train(model, opt, evaluate, steps=60, every=10):
    """Findings of the name here, of a loop that calls ``evaluate(step)`` between its steps."""
    with thalweg.watch(model, opt, budget=1e9, store=None) as run:
        for step in range(1, steps + 1):
            F.cross_entropy(model(INPUTS), TARGETS).backward()
            opt.step()
            opt.zero_grad()
            if step % every == 0:
                evaluate(step)
    assert not run.disabled
    return [one for one in run.findings if one.name == NAME]


def passes(model, mode):
    def evaluate(step):
        model.train(mode)
        with torch.no_grad():
            model(INPUTS), model(INPUTS)
        model.train()

    return evaluate


def test_training_mode_is_named_at_the_second_evaluation_with_its_modules():
    model = network()
    (found,) = train(model, torch.optim.SGD(model.parameters(), lr=0.1), passes(model, True))
    assert (found.step, found.found) == (10, 21)
    assert found.layers == ("1", "3") and found.evidence["modules in training mode"] == 2


def test_evaluation_mode_is_not_and_neither_is_a_model_that_has_no_mode():
    model = network()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), passes(model, False)) == []
    plain = tasks.MLP((8, 16, 4), norm="layer", seed=0)
    assert train(plain, torch.optim.SGD(plain.parameters(), lr=0.1), passes(plain, True)) == []


def test_passes_at_every_step_and_measuring_the_statistics_are_training():
    model = network()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), passes(model, True), every=1) == []
    model = tasks.MLP((8, 16, 4), norm="batch", seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    assert train(model, opt, lambda step: update_bn([INPUTS], model)) == []


def test_an_average_that_is_never_put_in_is_named_and_one_that_sometimes_is_not():
    def outcome(inside):
        model = tasks.MLP((8, 16, 4), seed=0)
        opt = optim.Average(torch.optim.SGD(model.parameters(), lr=0.1))

        def evaluate(step):
            with torch.no_grad(), inside(opt, step):
                model(INPUTS)

        return train(model, opt, evaluate)

    plain = torch.no_grad
    (found,) = outcome(lambda opt, step: plain())
    assert found.step == 10 and found.evidence["evaluations"] == 3
    assert outcome(lambda opt, step: opt.averaged()) == []
    assert outcome(lambda opt, step: opt.averaged() if step == 20 else plain()) == []


@pytest.mark.parametrize("evaluated", [False, True])
def test_an_averaged_copy_that_is_never_run_is_named(evaluated):
    model = tasks.MLP((8, 16, 4), seed=0)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = []

    def evaluate(step):
        if not kept:
            kept.append(AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)))
        kept[0].update_parameters(model)
        with torch.no_grad():
            model(INPUTS)
            if evaluated:
                kept[0](INPUTS)

    assert len(train(model, opt, evaluate, steps=90)) == (not evaluated)


def test_a_copy_that_nobody_goes_on_writing_into_is_no_average():
    model = tasks.MLP((8, 16, 4), seed=0)
    kept = []

    def evaluate(step):
        kept.append(copy.deepcopy(model))
        with torch.no_grad():
            model(INPUTS)

    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), evaluate) == []


@pytest.mark.parametrize("written", ["loaded", "in place"])
def test_a_copy_of_the_best_weights_is_no_average(written):
    model = tasks.MLP((8, 16, 4), seed=0)
    kept = [copy.deepcopy(model)]

    def evaluate(step):
        with torch.no_grad():
            model(INPUTS)
            # Kept behind the evaluation, or as a target network a step later.
            if written == "loaded":
                kept[0].load_state_dict(model.state_dict())
            elif step % 20 == 0:
                for mine, its in zip(kept[0].parameters(), model.parameters(), strict=True):
                    mine.copy_(its)

    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), evaluate, steps=90) == []


def test_schedule_free_modes_and_wrappers_are_known():
    p = nn.Parameter(torch.ones(2))
    opt = torch.optim.SGD([p], lr=0.1)
    assert holds_average(opt) is None
    opt.param_groups[0]["train_mode"] = True
    assert holds_average(opt) is False
    opt.param_groups[0]["train_mode"] = False
    assert holds_average(opt) is True


@pytest.mark.parametrize(("momentum", "wrong"), [(0.1, False), (0.001, True), (0.0, True), (None, False)])
def test_statistics_that_are_still_the_first_ones_are_named(momentum, wrong):
    model = tasks.MLP((8, 16, 4), norm="batch", seed=0)
    model[1].momentum = momentum
    found = train(model, torch.optim.SGD(model.parameters(), lr=0.1), passes(model, False))
    assert len(found) == wrong
    if wrong:
        # After step 20 there has been one more batch before the reading.
        assert found[0].step == 20 and found[0].layers == ("1",)
        assert found[0].evidence["initial statistics"] == pytest.approx((1 - momentum) ** 21)


def test_statistics_that_came_with_the_weights_are_not_the_first_ones():
    model = tasks.MLP((8, 16, 4), norm="batch", seed=0)
    model[1].momentum = 0.0
    model[1].running_mean.fill_(0.3)
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), passes(model, False)) == []


@pytest.mark.parametrize("scenario", ["digits_dropout", "teacher_average", "digits_statistics"])
def test_planted_slips_are_named_and_their_twins_are_not(scenario):
    run = getattr(planted_runs, scenario)
    assert NAME in {one.name for one in run.outcome(100).findings}
    assert NAME not in {one.name for one in run.outcome(100, planted=False).findings}


def test_remedies_run_as_pasted_and_papers_are_there():
    rule = WrongEvaluation({})
    rows = []
    for after in (30, 40, 50):
        extra = {"after": after}
        rows.append(Reading(after + 1, "modules in training mode", 1.0, {"1": 1.0}, extra))
        rows.append(Reading(after + 1, "initial statistics", 0.9, {"1": 0.9}, extra))
        rows.append(Reading(after + 1, "evaluation of the iterate", 1.0, {}, extra))
    found = [one for row in rows for one in rule.see(row)]
    assert len(found) == 3
    for finding in found:
        assert all(papers.find(key).key == key for key in finding.papers)
        for remedy in finding.remedies:
            model = network()
            opt = torch.optim.SGD(model.parameters(), lr=0.1)
            modes, norm = [], model[1]
            model.register_forward_hook(lambda *_, modes=modes: modes.append(_[0].training))
            names, _ = paste(remedy.code, model, opt, batches(20), after=True)
            assert model.training
            if remedy.title == "evaluate in evaluation mode":
                assert modes.count(False) == 1 and not names["outputs"].requires_grad
            elif remedy.title == "evaluate the average":
                now = model(names["batch"][0])
                assert names["opt"].steps == 20 and not torch.allclose(now, names["outputs"], atol=1e-3)
            elif remedy.title.startswith("measure"):
                assert modes == [True] * 60
            else:
                assert norm.momentum == 0.1


def left_in_evaluation(model):
    def evaluate(step):
        model.eval()
        with torch.no_grad():
            model(INPUTS)

    return evaluate


def test_training_that_goes_on_in_evaluation_mode_is_named_with_its_modules_and_mended():
    model = network()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    (found,) = train(model, opt, left_in_evaluation(model), every=30)
    assert (found.step, found.found, found.layers) == (31, 33, ("1", "3"))
    assert "trained in evaluation mode" in found.message
    (remedy,) = found.remedies
    paste(remedy.code, model, opt, [])
    assert model.training and papers.find(remedy.paper).key == remedy.paper


@pytest.mark.parametrize(
    ("model", "change"),
    [
        (network(), lambda model, step: None),
        # One step in evaluation mode, as of an example that is fitted to an attack.
        (network(), lambda model, step: model.train(step % 10 != 0)),
        # Statistics that are kept on purpose, in a model that trains.
        (network(), lambda model, step: model[1].eval()),
        (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), lambda model, step: model.eval()),
    ],
    ids=["training", "now and then", "statistics alone", "nothing that minds"],
)
def test_other_steps_are_none(model, change):
    def evaluate(step):
        change(model, step)

    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), evaluate, every=1) == []


def test_a_model_that_was_never_in_training_mode_is_taken_to_be_meant_so():
    model = network().eval()
    assert train(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda step: None) == []
