"""Scale-invariant weights are told from others by their gradients, and fast growth of theirs is named."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.findings.planted import effective_rate as planted_runs
from torch import nn
from torch.nn import functional as F

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.watch import Reading
from thalweg.watch.moment import Moment
from thalweg.watch.rules.effective_rate import ShrinkingEffectiveRate
from thalweg.watch.sensors.effective_rate import effective_rate

NAME = "shrinking effective learning rate"


def readings(model, opt, shape, count=6):
    """What the sensor says before each of a few steps on random data."""
    torch.manual_seed(0)
    memory, found = {}, []
    for step in range(count):
        opt.zero_grad()
        F.cross_entropy(model(torch.randn(32, *shape)), torch.randint(0, 4, (32,))).backward()
        at = Moment(step + 1, dict(model.named_parameters()), opt, model, memory=memory)
        found.append(effective_rate.read(at))
        opt.step()
    return found


@pytest.mark.parametrize(("make", "power"), [(torch.optim.SGD, 2), (torch.optim.AdamW, 1)])
def test_weights_before_batch_norm_are_found_and_no_others(make, power):
    model = tasks.MLP((16, 64, 64, 4), norm="batch", seed=0)
    opt = make(model.parameters(), lr=0.02)
    found = readings(model, opt, (16,))
    assert found[:2] == [[], []]
    for (raw,) in found[2:]:
        assert raw.layers == ("0.weight", "3.weight") and raw.extra == {"rate": 0.02}
    exact = [0.02 / model[k].weight.detach().double().norm().item() ** power for k in (0, 3)]
    # The last reading was before the last step.
    assert raw.values.tolist() == pytest.approx(exact, rel=0.05)


def test_a_network_without_normalisation_has_none():
    model = tasks.MLP((16, 64, 64, 4), seed=0)
    assert readings(model, torch.optim.SGD(model.parameters(), lr=0.1), (16,), 12) == [[]] * 12


def test_a_convolution_with_a_bias_before_batch_norm_counts_and_sparse_gradients_do_not():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    assert readings(model, opt, (1, 8, 8))[-1][0].layers == ("0.weight",)
    words = nn.Embedding(10, 4, sparse=True)
    words(torch.tensor([1, 2])).sum().backward()
    opt = torch.optim.SGD(words.parameters(), lr=0.1)
    assert effective_rate.read(Moment(1, dict(words.named_parameters()), opt, words)) == []


def feed(shares, rates=None, first=20):
    """Findings on a course of shares of the first effective rate, a reading every ten steps."""
    rule = ShrinkingEffectiveRate({"optimizer": "SGD", "lr": 0.1})
    rates = rates or [0.1] * len(shares)
    found = []
    for k, (share, rate) in enumerate(zip(shares, rates, strict=True)):
        value = rate * share / 7
        reading = Reading(
            first + 10 * k, "effective rate", value, {"a": value, "b": 2 * value}, {"rate": rate}
        )
        found += rule.see(reading)
    return found


def test_a_fall_that_steady_steps_do_not_explain_is_named_once():
    (found,) = feed([1.0] * 5 + [0.03] * 20)
    assert found.step == 70 and found.severity == "warning"
    assert found.evidence["left"] == pytest.approx(0.03) and found.evidence["threshold"] == pytest.approx(
        0.4 * math.sqrt(20 / 90)
    )


@pytest.mark.parametrize(
    ("shares", "rates"),
    [
        ([math.sqrt(20 / (20 + 10 * k)) for k in range(200)], None),
        ([1.0] * 100, [0.1 * 0.9**k for k in range(100)]),
        ([1.0, 1.0, 0.03, 1.0] * 10, None),
        ([1.0 / (1 + k) for k in range(10)] + [0.1] * 30, [0.01 * (1 + k) for k in range(10)] + [0.1] * 30),
        ([1.0] * 10 + [0.0] * 10, [0.1] * 10 + [0.0] * 10),
    ],
    ids=[
        "steady growth",
        "a schedule",
        "single readings",
        "while the rate warms up",
        "the end of a schedule",
    ],
)
def test_other_courses_are_none(shares, rates):
    assert feed(shares, rates) == []


def test_a_burst_of_the_rate_is_named_and_its_twin_is_not():
    planted, twin = (planted_runs.digits_adamw.outcome(100, fault) for fault in (True, False))
    (found,) = [one for one in planted.findings if one.name == NAME]
    assert found.step > planted_runs.JUMP and set(found.layers) == {"0.weight", "3.weight"}
    assert NAME not in {one.name for one in twin.findings}


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_remedies_run_as_pasted_and_papers_are_there(optimizer):
    rule = ShrinkingEffectiveRate({"optimizer": optimizer, "lr": 1e-3})
    rows = [
        Reading(10 * k, "effective rate", v, {"a": v}, {"rate": 0.1})
        for k, v in enumerate([1] + [0.01] * 3, 1)
    ]
    (found,) = [one for row in rows for one in rule.see(row)]
    assert all(papers.find(key).key == key for key in found.papers)
    for remedy in found.remedies:
        model = tasks.MLP((8, 16, 4), norm="batch", seed=0)
        opt = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3)
        before = model[0].weight.detach().clone()
        paste(remedy.code, model, opt, batches(1))
        assert not torch.equal(before, model[0].weight)
