"""The measurement of error rates: what is found, what counts as a hit, how early, and what is published."""

import json
import math
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from benchmarks.findings import scenario as scenarios
from benchmarks.findings.__main__ import DATA, PAGE
from benchmarks.findings.judge import alarms, infos, step_found, step_shown
from benchmarks.findings.loop import Outcome
from benchmarks.findings.measure import jobs, measured
from benchmarks.findings.page import page
from benchmarks.findings.rates import as_text, interval, rates, record
from benchmarks.findings.scenario import Healthy, Planted, all_healthy, all_planted

from thalweg.watch import Finding, error_rates
from thalweg.watch.rule import all_rules


def told(name, found, severity="warning"):
    return Finding(name, found, "", {}, severity, found=found)


# What there is.


def test_scenarios_are_found_by_being_there():
    planted = all_planted()
    assert planted["gradient_spike.one_layers_gradient"].finding == "gradient spike"
    assert all_healthy()["digits.mlp_adamw"].model == "MLP"
    files = (Path(scenarios.__file__).parent / "planted").glob("[!_]*.py")
    assert {key.split(".")[0] for key in planted} == {file.stem for file in files}


def test_every_finding_is_planted_in_two_ways_that_differ_in_the_run_and_in_the_optimizer():
    by_finding = {}
    for one in all_planted().values():
        by_finding.setdefault(one.finding, []).append(one)
    assert set(by_finding) == {name for rule in all_rules({}) for name in (rule.name, *rule.further)}
    for finding, group in by_finding.items():
        assert len({(one.task, one.model) for one in group}) >= 2, finding
        assert len({one.optimizer for one in group}) >= 2, finding


def test_healthy_runs_are_as_varied_as_was_promised():
    healthy = all_healthy()
    assert len({key.split(".")[0] for key in healthy}) >= 4
    assert len({one.model.split(",")[0] for one in healthy.values()}) >= 3
    assert len({one.optimizer.split(",")[0] for one in healthy.values()}) >= 4
    assert len(healthy) >= 12


def test_a_healthy_run_must_say_when_it_has_learnt():
    with pytest.raises(
        ValueError, match="loss or accuracy must say when MLP on digits has learnt, got neither"
    ):
        Healthy("digits", "MLP", "SGD", lambda seed: Outcome([], []))
    run = Healthy("digits", "MLP", "SGD", lambda seed: Outcome([], []), loss=1.0, accuracy=0.5)
    assert run.learnt(Outcome([], [9.0] * 5 + [0.9] * 20, 0.5))
    assert not run.learnt(Outcome([], [0.9] * 20, 0.4)) and not run.learnt(Outcome([], [1.1] * 20, 0.9))
    assert not run.learnt(Outcome([], [0.9] * 20)) and not run.learnt(Outcome([], [math.nan] * 20, 0.9))


def test_a_scenario_depends_on_its_seed_alone():
    one = all_planted()["not_finite.nan_in_a_gradient"]
    first, second, other = one.outcome(3, False), one.outcome(3, False), one.outcome(4, False)
    assert first.losses == second.losses != other.losses
    assert [f.as_dict() for f in first.findings] == [f.as_dict() for f in second.findings]
    twin = one.outcome(3, planted=True)
    assert twin.losses[:50] == first.losses[:50] and math.isnan(twin.losses[-1])


# Hits and lead times.


def test_a_hit_comes_at_the_onset_or_behind_it():
    findings = [told("a", 10), told("b", 50), told("a", 60), told("a", 40)]
    assert step_found(findings, "a", 0) == 10
    assert step_found(findings, "a", 40) == 40
    assert step_found(findings, "a", 41) == 60
    assert step_found(findings, "a", 61) is None
    assert alarms([*findings, told("c", 1, "info")], but=["b"]) == ["a"]
    assert infos([told("c", 1, "info"), told("a", 1)]) == ["c"]


def curve(steps=200, scatter=0.05, seed=0):
    return 1 + scatter * np.random.default_rng(seed).standard_normal(steps)


def test_the_loss_shows_a_jump_when_most_of_five_losses_are_behind_it():
    twin = curve()
    losses = twin.copy()
    losses[99:] += 1.0
    # Of the last five losses three must be high: those of steps 100, 101 and 102.
    assert step_shown(losses, twin, 100) == 102
    assert step_shown(losses, twin, 120) == 120


def test_a_departure_that_ends_is_not_for_good_and_one_that_begins_at_the_end_is_too_short():
    twin = curve()
    for part, last in ((slice(99, 140), None), (slice(196, 200), None), (slice(190, 200), 193)):
        losses = twin.copy()
        losses[part] += 1.0
        assert step_shown(losses, twin, 50) == last


def test_a_slow_departure_is_seen_when_it_passes_three_times_the_scatter():
    twin = curve(400, scatter=0.05)
    losses = twin.copy()
    losses[100:] += 0.01 * np.arange(300)
    # 0.15 is three times the scatter; the median lags two steps behind.
    assert step_shown(losses, twin, 100) == pytest.approx(100 + 15 + 2, abs=6)


def test_noise_alone_is_never_shown_and_losses_that_are_no_numbers_are():
    twin = curve()
    assert step_shown(curve(seed=1), twin, 0) is None and step_shown(twin, twin, 0) is None
    losses = twin.copy()
    losses[99:] = math.nan
    assert step_shown(losses, twin, 100) == 102
    assert step_shown(losses, losses, 100) is None


def test_without_scatter_a_hundredth_of_the_loss_is_taken_for_it():
    twin = np.ones(100)
    for rise, last in ((0.029, None), (0.031, 53)):
        losses = twin.copy()
        losses[50:] += rise
        assert step_shown(losses, twin, 50) == last


def test_the_interval_contains_exactly_the_rates_that_a_count_does_not_refute():
    low, high = interval(2, 30)
    below = sum(math.comb(30, k) * high**k * (1 - high) ** (30 - k) for k in range(3))
    above = sum(math.comb(30, k) * low**k * (1 - low) ** (30 - k) for k in range(2, 31))
    assert below == pytest.approx(0.025) and above == pytest.approx(0.025)
    assert interval(0, 30) == (0.0, pytest.approx(1 - 0.025 ** (1 / 30)))
    assert interval(30, 30) == (pytest.approx(0.025 ** (1 / 30)), 1.0)


# The whole way, with runs that take no time.


def spoken(seed, planted):
    findings = [told("spoken", 20 if seed else 5)] if planted else []
    losses = list(curve(60))
    if planted:
        losses[29:] = [5.0] * 31
    return Outcome([*findings, told("other", 3)], losses)


def unlucky(seed):
    findings = [told("spoken", 9, "warning" if seed else "info")]
    return Outcome(findings, [0.5 if seed < 3 else 2.0] * 30)


@pytest.fixture
def pretended(monkeypatch):
    planted = {"toy.one": Planted("spoken", "jump", "t", "m", "o", spoken, 10)}
    healthy = {"toy.two": Healthy("t", "m", "o", unlucky, loss=1.0)}
    for module in ("scenario", "measure", "rates"):
        monkeypatch.setattr(f"benchmarks.findings.{module}.all_planted", lambda: planted)
        monkeypatch.setattr(f"benchmarks.findings.{module}.all_healthy", lambda: healthy)
    # The pretended scenarios are of this process alone.
    monkeypatch.setattr("benchmarks.findings.measure._pool", lambda processes: Here())


class Here:
    """A pool of no processes."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, job, *arguments):
        future = Future()
        future.set_result(job(*arguments))
        return future


def test_hits_misses_false_alarms_and_untrained_runs_are_counted(pretended, tmp_path, monkeypatch):
    results = measured(jobs(range(4)), folder=tmp_path)
    data = json.loads(as_text(record(results, (0, 4))))
    (planted,), (healthy,) = data["planted"], data["healthy"]
    # Of seed 0 the finding comes at step 5, before there is a fault.
    assert planted["found"] == [None, 20, 20, 20] and planted["shown"] == [32] * 4
    assert (planted["early"], planted["twins"], planted["also"]) == (1, 0, {"other": 4})
    # Seed 3 does not learn and is not counted; seed 0 is described, not alarmed.
    assert healthy["untrained"] == [3] and healthy["runs"] == 3
    assert (healthy["alarmed"], healthy["alarms"], healthy["infos"]) == (2, {"spoken": 2}, {"spoken": 1})
    (one,) = rates(data)
    assert (one.runs, one.hits, one.alarms, one.healthy, one.leads, one.hidden) == (4, 3, 2, 3, (12,) * 3, 0)
    text = page(data)
    assert "Not met by: spoken (named in 3 of 4 runs with the fault; false alarms in 2 of 3 healthy" in text
    assert "| spoken | 3/4 (19 to 99 %) | 2/3 (9 to 99 %) | 1/3 | 12 (12 to 12) | 0/3 | 0/4 |" in text
    assert "1: seeds 3" in text
    assert "4 runs with a planted fault (1 faults), each beside its twin without, and 3 healthy runs" in text
    # The package tells the same with each finding.
    monkeypatch.setattr("thalweg.watch.rates._measured", lambda: data)
    words = "named in 3 of 4 runs with the fault, false alarms in 2 of 3 healthy runs"
    assert str(error_rates("spoken")) == words and error_rates("other") is None
    assert f"\n  measured: {words}" in str(told("spoken", 5)) and "measured" not in str(told("other", 5))


def test_what_was_measured_is_not_measured_again(pretended, tmp_path, monkeypatch, capsys):
    first = measured(jobs(range(2)), folder=tmp_path)
    (file,) = tmp_path.glob("*.jsonl")
    with file.open("a") as cut:
        cut.write('\n{"kind": "planted", "scen')
    calls = Counter()
    monkeypatch.setattr(
        "benchmarks.findings.measure.run_job",
        lambda job: calls.update([job]) or {"kind": job[0], "scenario": job[1], "seed": job[2]},
    )
    again = measured(jobs(range(3)), folder=tmp_path)
    assert again[:4] == first and "4 of 6 runs are in" in capsys.readouterr().out
    assert sorted(calls) == [("healthy", "toy.two", 2), ("planted", "toy.one", 2)]
    assert len(measured(jobs(range(3)), folder=tmp_path)) == 6 and len(calls) == 2


def test_a_run_that_fails_is_told_and_run_again(pretended, tmp_path, monkeypatch):
    def broken(seed, planted):
        raise ValueError("no data")

    scenario = {"toy.one": Planted("spoken", "jump", "t", "m", "o", broken, 10)}
    monkeypatch.setattr("benchmarks.findings.measure.all_planted", lambda: scenario)
    (result,) = measured(jobs([0], ["toy.one"]), folder=tmp_path)
    assert "ValueError: no data" in result["error"]
    monkeypatch.setattr("benchmarks.findings.measure.all_planted", scenarios.all_planted)
    (result,) = measured(jobs([0], ["toy.one"]), folder=tmp_path)
    assert "error" not in result


def test_scenarios_are_chosen_by_finding_name_or_kind(pretended):
    assert jobs([7], ["spoken"]) == [("planted", "toy.one", 7)]
    assert jobs([7], ["healthy"]) == [("healthy", "toy.two", 7)]
    assert len(jobs([7, 8])) == 4
    with pytest.raises(ValueError, match="only must name a scenario, its finding, or healthy; got nothing"):
        jobs([7], ["nothing"])


# What is published.


@pytest.mark.skipif(not DATA.is_file(), reason="nothing has been published yet")
def test_the_page_is_what_the_numbers_say():
    data = json.loads(DATA.read_text(encoding="utf8"))
    assert PAGE.read_text(encoding="utf8") == page(data)
    assert DATA.read_text(encoding="utf8") == as_text(data)
