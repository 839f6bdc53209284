"""A phase change: told where readings leave their way for good, not where they decay, wobble or spike."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from benchmarks.findings.planted import phase_change as planted_runs

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.watch import Blocks, Reading
from thalweg.watch.moment import all_sensors
from thalweg.watch.rates_by_group import noted
from thalweg.watch.rules.phase_change import PhaseChange

NAME = "phase change"
SEEDS = range(12)


def feed(course, steps, seed, noise, name="loss", every=1):
    """Findings on a reading whose logarithm is ``course(step)`` plus Gaussian noise."""
    source, rule = random.Random(seed), PhaseChange({"optimizer": "SGD", "lr": 0.1})
    return [
        one
        for step in range(1, steps + 1, every)
        for one in rule.see(Reading(step, name, math.exp(course(step) + noise * source.gauss(0, 1))))
    ]


ORDINARY = {
    "flat": lambda s: 0.0,
    "exponential decay": lambda s: -s / 200,
    "power law": lambda s: -0.5 * math.log(s),
    "fast, then slow": lambda s: math.log(2 * math.exp(-s / 30) + 0.1),
    "to a floor": lambda s: math.log(math.exp(-s / 150) + 0.2),
    "warm-up": lambda s: math.log(min(s / 100, 1.0)),
    "half a cosine": lambda s: math.log(1.2 + math.cos(math.pi * min(s, 1000) / 1000)),
    "slow waves": lambda s: 0.3 * math.sin(s / 150),
    "quick waves": lambda s: 0.3 * math.sin(s / 9),
}


@pytest.mark.parametrize("noise", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("kind", ORDINARY)
def test_an_ordinary_course_is_no_change(kind, noise):
    told = [one for seed in SEEDS for one in feed(ORDINARY[kind], 1000, seed, noise)]
    assert told == []


@pytest.mark.parametrize("length", [400, 3000, 40_000])
@pytest.mark.parametrize("jump", [-1.2, 1.2])
def test_a_lasting_jump_is_told_once_whatever_the_runs_length(length, jump):
    start = length // 2
    for seed in range(4):
        told = feed(lambda s: -s / length + (jump if s >= start else 0.0), length, seed, 0.15)
        assert [one.name for one in told] == [NAME]
        assert told[0].severity == "info"
        assert abs(told[0].step - start) <= length / 30
        assert told[0].evidence["loss times"] == pytest.approx(math.exp(jump), rel=0.3)
        assert told[0].evidence["spreads away"] >= told[0].evidence["threshold"] == 4.2


@pytest.mark.parametrize("lasts", [1, 10])
def test_a_spike_is_no_change(lasts):
    for seed in SEEDS:
        assert feed(lambda s: 3.0 if 500 <= s < 500 + lasts else 0.0, 1000, seed, 0.1) == []


def test_a_curve_that_bends_down_from_a_plateau_is_one():
    for seed in range(4):
        told = feed(lambda s: -max(s - 400, 0) / 40, 600, seed, 0.1)
        assert [one.name for one in told] == [NAME] and 390 <= told[0].step <= 460


def test_two_changes_with_a_steady_stretch_between_them_are_two():
    told = feed(lambda s: -1.5 * (s > 300) - 1.5 * (s > 900), 1200, 0, 0.1)
    assert [one.name for one in told] == [NAME] * 2
    assert abs(told[0].step - 300) <= 16 and abs(told[1].step - 900) <= 32


def weak(together):
    """Loss and gradient norm fall by 0.5 in logarithms at step 300, each too little to stand alone."""
    source, rule = random.Random(1), PhaseChange({"optimizer": "SGD", "lr": 0.1})
    found = []
    for step in range(1, 601):
        for name in ("loss", "gradient norm") if together else ("loss",):
            off = -0.5 if step >= 300 else 0.0
            value = math.exp(off + 0.1 * source.gauss(0, 1))
            found += rule.see(Reading(step, name, value))
    return found


def test_what_is_too_little_alone_counts_together():
    assert weak(together=False) == []
    (found,) = weak(together=True)
    assert abs(found.step - 300) <= 16 and found.evidence["threshold"] == 11.0
    assert found.evidence["spreads away"] == pytest.approx(
        found.evidence["loss, spreads away"] + found.evidence["gradient norm, spreads away"]
    )


def test_the_learning_rate_is_named_where_it_changed_too():
    source, rule = random.Random(0), PhaseChange({"optimizer": "SGD", "lr": 0.1})
    found = list(rule.see(Reading(1, "learning rate", 0.1)))
    for step in range(1, 601):
        if step == 300:
            found += rule.see(Reading(300, "learning rate", 0.01))
        value = math.exp((-1.0 if step >= 300 else 0.0) + 0.1 * source.gauss(0, 1))
        found += rule.see(Reading(step, "loss", value))
    (one,) = found
    assert "learning rate went from 0.1 to 0.01 at step 300" in one.message


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ([0.1], [0.0], "learning rate went from 0.1 to 0 at"),
        ([0.0, 0.1], [0.0, 0.01], "learning rate of parameter group 1 went from 0.1 to 0.01 at"),
        ([0.1, 0.1], [0.1, 0.0], "learning rate of parameter group 1 went from 0.1 to 0 at"),
    ],
)
def test_a_rate_of_any_group_counts_and_so_does_one_that_falls_to_nothing(before, after, words):
    source, rule, found = random.Random(0), PhaseChange({"optimizer": "SGD", "lr": 0.1}), []
    for step in range(1, 601):
        if step in (1, 300):
            rates = after if step == 300 else before
            extra = noted([{"lr": rate} for rate in rates])
            found += rule.see(Reading(step, "learning rate", rates[0], {}, extra))
        value = math.exp((-1.0 if step >= 300 else 0.0) + 0.1 * source.gauss(0, 1))
        found += rule.see(Reading(step, "loss", value))
    (one,) = found
    assert words in one.message


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_has_no_logarithm_is_passed_over(value):
    rule = PhaseChange({})
    for step in range(1, 300):
        assert list(rule.see(Reading(step, "loss", value if step % 7 == 0 else 1.0))) == []


def test_blocks_are_medians_and_never_more_than_96():
    blocks = Blocks()
    for step in range(1, 4 * 95 + 2):
        blocks.add(step, float(step))
    assert blocks.size == 4 and len(blocks.values) == 95
    assert blocks.values == [4 * n + 2.5 for n in range(95)]
    for step in range(4 * 95 + 2, 10_000):
        blocks.add(step, float(step))
        assert len(blocks.values) < 96
    assert blocks.size == 128
    assert all(b - a == 128 for a, b in pairwise(blocks.values))


def test_a_run_that_begins_late_or_skips_steps_has_its_blocks_too():
    blocks = Blocks()
    for step in (1_000_000, 1_000_001, 5, 3_000_000):
        blocks.add(step, 1.0)
    assert len(blocks.values) < 96 and blocks.departure() is None
    assert [one for one in blocks.values if one == one] == [1.0]


SCENARIOS = {"data": planted_runs.data, "rate": planted_runs.rate, "frozen": planted_runs.frozen}
CHEAP = {"gradient norm", "weight norm", "learning rate"}


@pytest.mark.parametrize("kind", SCENARIOS)
def test_a_change_in_training_is_told_and_its_twin_is_not(kind, monkeypatch):
    monkeypatch.setattr(
        "thalweg.watch.senses.all_sensors", lambda: [one for one in all_sensors() if one.name in CHEAP]
    )
    scenario = SCENARIOS[kind]
    planted, twin = (scenario.outcome(100, fault) for fault in (True, False))
    told = [one for one in planted.findings if one.name == NAME]
    assert len(told) == 1 and scenario.onset - 8 <= told[0].step <= scenario.onset + 30
    assert scenario.onset <= told[0].found <= scenario.onset + 80
    assert NAME not in {one.name for one in twin.findings}


def test_remedies_run_as_pasted_and_papers_are_there():
    (found,) = weak(together=True)
    (remedy,) = found.remedies
    model = tasks.MLP((8, 8, 4), seed=0)
    opt, loader = torch.optim.SGD(model.parameters(), lr=0.1), [next(iter(batches(1)))] * 500
    kept = paste(remedy.code, model, opt, loader)[0]["kept"]
    before, behind = kept
    assert before == found.step < behind <= 500
    assert not torch.equal(kept[before]["0.weight"], kept[behind]["0.weight"])
    assert all(papers.find(key).key == key for key in found.papers)
