"""Rules speak on planted faults, are silent on healthy runs, and their remedies run as they are."""

import math

import pytest
import torch
from benchmarks.findings.scenario import all_healthy, all_planted
from torch import nn

from readme_loop import batches, paste
from thalweg import papers, tasks
from thalweg.watch import Reading, all_rules
from thalweg.watch.rules.dormant_units import DormantUnits
from thalweg.watch.rules.gradient_spike import GradientSpike

SEEDS = range(5)
# Scenario, and the steps between which its finding begins.
FAULTS = {
    "gradient_spike.one_layers_gradient": ("gradient spike", 150, 150),
    "edge_of_stability.rate_above_the_limit": ("edge of stability", 101, 122),
    "edge_of_stability.constant_rate": ("edge of stability", 100, 600),
    "dormant_units.shut_units": ("dormant units growing", 101, 142),
    "softmax_collapse.blown_up": ("softmax collapse", 101, 107),
    "not_finite.nan_in_a_gradient": ("not finite", 50, 50),
    "memorised.wrong_labels": ("memorised, not generalising", 1, 300),
    "generalisation.addition": ("generalisation under way", 10, 300),
}
HEALTHY = ("digits.mlp_adamw", "digits.cnn_large_batches", "text.gpt_adamw", "noisy_teacher.mlp_momentum")


def feed(rows, optimizer="AdamW", lr=1e-3):
    """Findings of the rules that are tested here on (step, name, value, extra) rows."""
    names = {name for name, *_ in FAULTS.values()}
    rules = [rule for rule in all_rules({"optimizer": optimizer, "lr": lr}) if rule.name in names]
    found = []
    for step, name, value, *extra in rows:
        reading = Reading(step, name, value, {}, *extra)
        found += [one for rule in rules if name in rule.reads for one in rule.see(reading)]
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_at_its_step(fault):
    name, first, last = FAULTS[fault]
    scenario = all_planted()[fault]
    assert scenario.finding == name
    found = [one for one in scenario.outcome(0).findings if one.name == name]
    assert found and first <= found[0].step <= last and found[0].step <= found[0].found


@pytest.mark.parametrize("run", HEALTHY)
def test_a_healthy_run_raises_no_alarm(run):
    for seed in SEEDS:
        outcome = all_healthy()[run].outcome(seed)
        assert [one for one in outcome.findings if one.severity != "info"] == []


def noisy(count, seed, spread, drift=0.0):
    source = torch.Generator().manual_seed(seed)
    logs = spread * torch.randn(count, generator=source)
    return [math.exp(value + drift * step) for step, value in enumerate(logs.tolist())]


@pytest.mark.parametrize(("spread", "height"), [(0.05, 10.0), (0.3, 100.0), (0.7, 1000.0)])
def test_lognormal_gradient_noise_is_no_spike_but_what_stands_far_out_of_it_is(spread, height):
    for seed in SEEDS:
        quiet = [(step, "gradient norm", value) for step, value in enumerate(noisy(500, seed, spread), 1)]
        assert feed(quiet) == []
        (found,) = feed([*quiet, (501, "gradient norm", height)])
        assert found.name == "gradient spike" and found.step == 501
        assert found.evidence["times median"] == pytest.approx(height, rel=0.4)


def test_a_batch_like_others_before_it_is_no_spike_but_one_three_and_a_half_times_above_them_is():
    usual = [1.0 + 0.01 * (step % 7) for step in range(80)]
    rare = [10.0 if step % 25 == 10 else value for step, value in enumerate(usual)]
    rows = [(step, "gradient norm", value) for step, value in enumerate([*rare, 30.0], 1)]
    assert feed(rows) == []
    rule = GradientSpike({"optimizer": "AdamW", "lr": 1e-3})
    rule.past.extend(Reading(step, "gradient norm", value) for step, value in enumerate(rare[:64], 1))
    assert list(rule.see(Reading(65, "gradient norm", 34.0))) == []
    (found,) = rule.see(Reading(66, "gradient norm", 36.0))
    assert found.evidence["threshold"] == pytest.approx(35.0 / found.evidence["median"])


def test_a_gradient_that_grows_over_a_few_steps_is_a_spike():
    rows = [(step, "gradient norm", 1.0) for step in range(1, 60)]
    rows += [(60 + step, "gradient norm", 1.5**step) for step in range(1, 9)]
    assert [one.step for one in feed(rows)] == [65]


def test_a_falling_initial_transient_is_no_spike_and_a_lasting_rise_is_one_finding():
    falling = [(s, "gradient norm", 50 * v) for s, v in enumerate(noisy(200, 0, 0.2, drift=-0.03), 1)]
    assert feed(falling) == []
    risen = [(s, "gradient norm", v * (1 if s < 100 else 30)) for s, v in enumerate(noisy(400, 0, 0.1), 1)]
    assert [one.step for one in feed(risen)] == [100]


@pytest.mark.parametrize(
    ("loss", "height", "steps"),
    [
        (0.02, 1.5, []),  # one example that is not fitted yet
        (0.02, 2.5, [150]),  # more than any example had in the beginning
        (0.5, 1.5, [150]),  # much is left to fit
        (None, 1.5, [150]),
        (-1.0, 1.5, [150]),
    ],
)
def test_a_fitted_models_gradient_is_a_spike_above_those_of_the_first_steps(loss, height, steps):
    rule = GradientSpike({"optimizer": "AdamW", "lr": 1e-3})
    found = []
    for step in range(1, 160):
        early = step <= 20
        if loss is not None:
            found += rule.see(Reading(step, "loss", 2.0 if early else loss))
        norm = 2.0 if early else height if step == 150 else 0.1
        found += rule.see(Reading(step, "gradient norm", norm))
    assert [one.step for one in found] == steps


def sharp(ratios, start=100):
    extra = [{"ratio": r, "limit": 20.0, "lr": 0.1} for r in ratios]
    return [(start + 20 * i, "sharpness", 20.0 * e["ratio"], e) for i, e in enumerate(extra)]


@pytest.mark.parametrize(
    ("ratios", "severities"),
    [
        ([0.5] * 10, []),
        ([1.1, 0.8] * 5, []),
        ([0.8, 1.1, 1.2, 1.05], ["info"]),
        ([0.95, 0.97, 0.96, 0.94, 0.96, 0.95], ["info"]),
        ([0.5, 2.5], ["warning"]),
        ([1.1, 1.1, 1.1, 3.0, 3.0], ["info", "warning"]),
    ],
)
def test_the_edge_is_three_above_one_five_near_it_or_one_above_two(ratios, severities):
    assert [one.severity for one in feed(sharp(ratios), "SGD")] == severities


@pytest.mark.parametrize(
    ("ratios", "steps"),
    [
        ([3.0, 0.8, 0.5], []),  # a fresh network that flattens its path by itself
        ([5.9, 2.5], [22]),  # it does not
        ([6.5, 0.5], [2]),  # from there none comes back
    ],
)
def test_gradient_descent_may_begin_above_its_limit(ratios, steps):
    found = feed(sharp(ratios, start=2), "SGD")
    assert [one.step for one in found if one.severity == "warning"] == steps


@pytest.mark.parametrize(
    ("ratios", "loss", "steps"),
    [
        ([3.2, 2.3, 2.1, 1.5, 1.8], lambda step: 4.5 * 0.99**step, []),  # it flattens its path as it learns
        ([3.2, 2.3, 2.1, 1.5, 1.8], lambda step: 4.5, [22]),
        ([3.2, 1.5, 2.3], lambda step: 4.5 * 0.99**step, [42]),  # it has been there, and leaves again
        ([3.2, 7.0], lambda step: 4.5 * 0.99**step, [22]),
    ],
)
def test_a_fresh_network_may_take_longer_than_twenty_steps_while_its_loss_falls(ratios, loss, steps):
    rows = [(step, "loss", loss(step)) for step in range(1, 20 * len(ratios) + 2)] + sharp(ratios, start=2)
    found = feed(sorted(rows, key=lambda row: row[0]), "SGD")
    assert [one.step for one in found if one.severity == "warning"] == steps


@pytest.mark.parametrize(
    ("ratios", "steps"),
    [
        ([900.0, 10.5, 3.0, 0.3, 0.2], []),  # the preconditioner of rare gradients settles
        ([900.0, 10.5, 0.3, 0.2, 4.0, 0.2], []),  # a rare gradient
        ([900.0, 10.5, 0.3, 0.2, 4.0, 4.0], [102]),
        ([900.0, 3.0, 3.1, 3.0, 3.2, 3.1], [102]),  # it never was stable, and does not get there
    ],
)
def test_adam_is_judged_once_its_preconditioner_has_seen_gradients(ratios, steps):
    found = feed(sharp(ratios, start=2), "Adam")
    assert [one.step for one in found if one.severity == "warning"] == steps


def test_the_lower_learning_rate_that_is_proposed_is_below_the_limit_at_that_sharpness():
    (found,) = feed(sharp([4.0]), "SGD", lr=0.01)
    parameter = nn.Parameter(torch.ones(1))
    opt = torch.optim.SGD([parameter], lr=0.1)
    exec(found.remedies[1].code, {"opt": opt})
    sharpness, rate = found.evidence["sharpness"], opt.param_groups[0]["lr"]
    assert sharpness == 80 and rate * sharpness == pytest.approx(0.8 * 2, rel=0.01)


def test_a_state_learnt_by_heart_for_ever_is_never_called_under_way():
    for seed in SEEDS:
        source = torch.Generator().manual_seed(seed)
        rows = []
        for step in range(10, 3000, 10):
            jitter = 0.004 * torch.randn(1, generator=source).item()
            rows += [(step, "train accuracy", 1.0), (step, "test accuracy", 0.1 + jitter)]
        assert [one.name for one in feed(rows)] == ["memorised, not generalising"]


def test_dormant_units_that_were_there_from_the_start_are_not_the_runs_doing():
    assert feed([(step, "dormant units", 0.3) for step in range(20, 1000, 20)]) == []


def dormant(shares, layer=None):
    """Findings on shares of dormant units, every 20 steps; of one layer too."""
    rule = DormantUnits({"optimizer": "AdamW", "lr": 1e-3})
    found = []
    for index, share in enumerate(shares):
        layers = {} if layer is None else {"1": layer[index]}
        found += rule.see(Reading(2 + 20 * index, "dormant units", share, layers))
    return [(one.step, one.severity, one.evidence["threshold"]) for one in found]


def test_units_that_fall_silent_in_the_first_steps_and_wake_again_are_no_finding():
    assert dormant([0.11, 0.2, 0.17, 0.16, 0.15, 0.14]) == []
    assert dormant([0.11, 0.2, 0.17, 0.2, 0.27, 0.27]) == [(82, "warning", 0.10)]
    assert dormant([0.02] * 6, layer=[0.1, 0.3, 0.3, 0.34, 0.36, 0.4]) == []
    assert dormant([0.02] * 3 + [0.04] * 3, layer=[0.1, 0.3, 0.3, 0.4, 0.6, 0.6]) == [(82, "warning", 0.5)]
    assert dormant([0.01 * index for index in range(12)]) == [(182, "info", pytest.approx(0.05))]


def test_softmax_collapse_is_described_before_it_alarms():
    rows = [
        (step, "softmax collapse", share) for step, share in enumerate((0.0, 0.06, 0.2, 0.3, 0.6, 0.9), 1)
    ]
    learnt = [(0, "train accuracy", 1.0), (0, "test accuracy", 0.6)]
    found = [(one.step, one.severity) for one in feed(learnt + rows) if one.name == "softmax collapse"]
    assert found == [(2, "info"), (4, "warning"), (5, "critical")]


@pytest.mark.parametrize(
    "known",
    [
        [],
        [("train accuracy", 1.0)],
        [("train accuracy", 1.0), ("test accuracy", 0.8)],
        [("train accuracy", 1.0), *(("test accuracy", 0.1 + 0.02 * step) for step in range(20))],
        [("train accuracy", 1.0), ("test accuracy", 0.6), *(("test loss", 2 - 0.02 * i) for i in range(20))],
    ],
    ids=["unknown", "only of training", "general", "accuracy at its best", "loss at its best"],
)
def test_collapse_without_harm_is_described_and_no_more(known):
    rows = [(step, *one) for step, one in enumerate([*known, ("softmax collapse", 0.9)], 1)]
    assert [one.severity for one in feed(rows) if one.name == "softmax collapse"] == ["info"]


def every_finding():
    rows = [(step, "gradient norm", 1.0) for step in range(1, 60)] + [(60, "gradient norm", 90.0)]
    rows += [*sharp([1.1] * 3 + [3.0]), (5, "softmax collapse", 0.9), (6, "loss", math.nan)]
    rows += [(20, "dormant units", 0.0), (40, "dormant units", 0.4), (60, "dormant units", 0.4)]
    for step in range(1, 40):
        rows += [(step, "train accuracy", 1.0), (step, "test accuracy", 0.1 + 0.01 * step)]
    return rows


@pytest.mark.parametrize(("optimizer", "lr"), [("AdamW", 3e-4), ("SGD", 0.5)])
def test_every_remedy_runs_as_pasted_and_every_paper_is_in_the_catalog(optimizer, lr):
    found = feed(every_finding(), optimizer, lr)
    assert {one.name for one in found} == {name for name, *_ in FAULTS.values()}
    for finding in found:
        assert finding.remedies and finding.papers
        for key in {*finding.papers, *(remedy.paper for remedy in finding.remedies)}:
            assert papers.find(key).key == key
        for remedy in finding.remedies:
            model = tasks.MLP((8, 16, 4), seed=0)
            opt = torch.optim.SGD(model.parameters(), lr=lr)
            names, steps = paste(remedy.code, model, opt, [next(iter(batches(1, 64)))] * 20)
            assert steps[-1][2] < steps[0][2], remedy.code
            rates = [group["lr"] for group in names["opt"].param_groups]
            assert optimizer != "SGD" or "Adam" not in type(names["opt"]).__name__ or max(rates) <= 1e-3
