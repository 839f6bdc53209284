"""``thalweg forecast``: what it reads from a store, what it predicts and what it says to wrong input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from thalweg import optim
from thalweg._logged_run import logged
from thalweg._planned_rates import planned_rates
from thalweg.cli import app
from thalweg.theory import annealing_areas
from thalweg.watch import Reading, RunStore

runner = CliRunner()
PEAK, STEPS, WARMUP = 1e-3, 2000, 50
COSINE = PEAK * np.array([optim.cosine(STEPS, WARMUP, 0.1)(step) for step in range(STEPS)])
CONSTANT = PEAK * np.minimum(1, np.arange(1, STEPS + 1) / WARMUP)


def truth(rates: np.ndarray) -> np.ndarray:
    """The loss after every step, by the law with known numbers."""
    forward, annealing = annealing_areas(rates, decay=0.99)
    return 2.6 + 0.4 * forward**-0.5 - 0.8 * annealing


def store_run(store: RunStore, name: str, rates: np.ndarray, *, first: int = 2, noise: float = 0.003) -> int:
    """What a watch leaves: a loss before every step, the rate whenever it has moved by a hundredth."""
    run = store.begin(name, {"optimizer": "AdamW", "lr": float(rates.max())})
    losses = truth(rates) + noise * np.random.default_rng(run).standard_normal(len(rates))
    readings = [Reading(1, "loss", 4.0)]
    readings += [Reading(step + 1, "loss", losses[step - 1]) for step in range(1, len(rates))]
    last = None
    for step in range(first, len(rates) + 1):
        rate = rates[step - 1]
        if last is None or abs(rate - last) > 0.01 * last:
            readings.append(Reading(step, "learning rate", rate))
            last = rate
    store.write(run, len(rates), [(0.0, one) for one in readings], [])
    store.end(run, "finished")
    return run


@pytest.fixture(autouse=True)
def a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        store_run(store, "cosine", COSINE)
        store_run(store, "constant", CONSTANT)
    return tmp_path


def forecast(*arguments: str) -> dict:
    result = runner.invoke(app, ["forecast", *arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: str) -> str:
    result = runner.invoke(app, ["forecast", *arguments])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output + result.stderr
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_schedule_that_was_not_run_is_forecast_within_its_error():
    decays = ("--decay", "0.9", "--decay", "0.99", "--decay", "0.999")
    found = forecast("1", "constant", "--schedule", "wsd:cooldown=0.25", "--schedule", "linear", *decays)
    rising = np.minimum(1, np.arange(1, STEPS + 1) / WARMUP)
    length = int(0.25 * (STEPS + 1))
    falling = [min(1.0, (STEPS - step) / length) for step in range(STEPS)]
    expected = truth(PEAK * rising * falling)[-1]
    wsd, linear = found["schedules"]
    assert found["law"]["decay"] == 0.99 and found["law"]["cooling"] == pytest.approx(0.8, rel=0.05)
    assert abs(wsd["final_loss"] - expected) < 4 * wsd["error"] < 0.01
    assert (wsd["steps"], wsd["peak"]) == (STEPS, pytest.approx(PEAK))
    assert wsd["curve"]["steps"] == [500, 1000, 1500, 2000]
    expected = truth(PEAK * np.array([optim.linear_decay(STEPS, WARMUP)(step) for step in range(STEPS)]))
    assert abs(linear["final_loss"] - expected[-1]) < 4 * linear["error"] < 0.01


def test_rates_between_readings_are_within_a_hundredth():
    with RunStore("runs/thalweg.sqlite") as store:
        cosine = logged(store, "cosine", "loss")
    # Also at step 1, before which the rate is never read.
    np.testing.assert_allclose(cosine.rates, COSINE, rtol=0.01)
    assert abs(cosine.rates.sum() / COSINE.sum() - 1) < 1e-3
    assert (cosine.steps[0], cosine.steps[-1], len(cosine.steps)) == (1, STEPS - 1, STEPS - 1)
    assert cosine.losses[-1] == pytest.approx(truth(COSINE)[-2], abs=0.02)


def test_a_jump_of_the_rate_is_held_until_it_happens():
    drop = np.where(np.arange(100) < 60, 1e-2, 1e-3)
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        run = store_run(store, "drop", drop)
        np.testing.assert_array_equal(logged(store, str(run), "loss").rates, drop)


def test_losses_of_one_step_are_averaged_and_those_that_are_not_finite_left_out():
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        run = store.begin("accumulated", {})
        readings = [Reading(2, "learning rate", 0.1), Reading(3, "loss", 1.0), Reading(3, "loss", 3.0)]
        readings += [Reading(4, "loss", float("nan")), Reading(5, "loss", 1.5)]
        store.write(run, 5, [(0.0, one) for one in readings], [])
        found = logged(store, "accumulated", "loss")
    assert (found.steps.tolist(), found.losses.tolist()) == ([2, 4], [2.0, 1.5])


def test_the_latest_run_of_a_name_is_taken():
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        store_run(store, "cosine", COSINE[:500])
        assert logged(store, "cosine", "loss").name == "run 3 (cosine)"


def test_named_schedules_are_those_of_the_optimizer_room():
    for text, made in (
        ("cosine:end=0.1", optim.cosine(STEPS, WARMUP, 0.1)),
        ("linear:warmup=0,steps=300", optim.linear_decay(300)),
    ):
        found = planned_rates(text, COSINE)
        np.testing.assert_allclose(found, COSINE.max() * np.array([made(i) for i in range(len(found))]))
    np.testing.assert_allclose(planned_rates("constant", COSINE), CONSTANT, rtol=1e-5)
    root = planned_rates("wsd:cooldown=0.5,shape=sqrt,warmup=0,steps=9,peak=2,end=0.5", COSINE)
    np.testing.assert_allclose(root[:5], 2)
    np.testing.assert_allclose(root[5:], [2 * (1 - 0.5 * (j / 5) ** 0.5) for j in range(1, 5)])


def test_a_file_of_rates_is_a_schedule(tmp_path):
    (tmp_path / "mine.txt").write_text("\n".join(f"{rate:.9g}" for rate in COSINE))
    mine, named = forecast("1", "--schedule", "mine.txt", "--schedule", "cosine:end=0.1")["schedules"]
    assert mine["final_loss"] == pytest.approx(named["final_loss"], rel=1e-4)


def test_the_table_and_the_plot_tell_the_final_loss(tmp_path):
    result = runner.invoke(app, ["forecast", "1", "--schedule", "wsd:cooldown=0.2", "--plot", "curve.svg"])
    found = forecast("1", "--schedule", "wsd:cooldown=0.2")["schedules"][0]
    assert result.exit_code == 0, result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("wsd"))
    assert row.split()[-2:] == [f"{found['final_loss']:.4f}", f"{found['error']:.4f}"]
    assert (tmp_path / "curve.svg").read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cosin", "--schedule", "wsd"],
            "holds 1 (cosine), 2 (constant); got 'cosin' (did you mean cosine?)",
        ),
        (["7", "--schedule", "wsd"], "RUN must be the id or name of a run in 'runs/thalweg.sqlite'"),
        (["1", "--schedule", "wsd", "--loss", "test loss"], "such as loss; got 'test loss'"),
        (["1", "--schedule", "wsd", "--store", "nothing.sqlite"], "no such file"),
        (["1", "--schedule", "wsd", "--store", "runs"], "existing run store, got 'runs': a folder"),
        (
            ["1", "--schedule", "runs/thalweg.sqlite"],
            "thalweg.sqlite: must be a text file with the rate of every step, got one that is not UTF-8",
        ),
        (["1", "--schedule", "cosin:end=0"], "got 'cosin:end=0' (did you mean cosine?)"),
        (["1", "--schedule", "cosine:cooldown=0.2"], "setting must be one of end, peak, steps, warmup; got"),
        (["1", "--schedule", "wsd:cooldown=2"], "wsd:cooldown=2: cooldown must be in [0, 1], got '2'"),
        (["1", "--schedule", "wsd:shape=root"], "shape must be one of linear, sqrt; got 'root'"),
        (["1", "--schedule", "wsd:cooldown=1"], "cooldown must begin after the 50 steps of warm-up, got 1"),
        (["1", "--schedule", "cosine:steps=many"], "steps must be an integer >= 1, got 'many'"),
        (["1", "--schedule", "cosine:steps=40"], "warmup must be less than steps = 40, got 50"),
        (["1", "--schedule", "cosine:peak=0"], "peak must be in (0, inf), got '0'"),
        (["1", "--schedule", "wsd:cooldown"], "cooldown must have one value, such as cooldown=..., got none"),
        (["1", "--schedule", "wsd:peak=1,peak=2"], "must have one value, such as peak=1, got several"),
        (["2", "--schedule", "cosine"], "run 2 (constant) cannot be fitted: rates must fall somewhere"),
        (["1", "--schedule", "wsd", "--decay", "1.5"], "--decay must be in [0, 1], got 1.5"),
        (["1", "--schedule", "wsd", "--skip", "5000"], "losses must have at least 5 after warm-up and skip"),
        (["1", "--schedule", "wsd", "--plot", "curve.pdf"], "ending of --plot must be one of .png, .svg"),
        (
            ["1", "--schedule", "wsd", "--plot", "no/a.png"],
            "--plot must be in a folder that exists, got 'no/",
        ),
    ],
)
def test_wrong_input_is_one_line(arguments, message):
    assert message in refused(*arguments)


def test_a_bad_line_of_a_file_is_named(tmp_path):
    (tmp_path / "mine.txt").write_text("1e-3\n1e-3, fast\n")
    assert "mine.txt, line 2: rate must be a number in [0, inf), got 'fast'" in refused(
        "1", "--schedule", "mine.txt"
    )
    (tmp_path / "none.txt").write_text("0 0\n")
    assert "none.txt: must hold a rate above 0, got 2 numbers" in refused("1", "--schedule", "none.txt")


def test_a_run_without_finite_losses_is_refused():
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        run = store.begin("lost", {})
        readings = [
            Reading(1, "learning rate", 0.1),
            Reading(1, "loss", 4.0),
            Reading(2, "loss", float("nan")),
        ]
        store.write(run, 5, [(0.0, one) for one in readings], [])
    assert "run 3 (lost) must have a finite 'loss' after its first step, got none" in refused(
        "lost", "--schedule", "wsd"
    )


def test_a_run_named_twice_counts_once():
    assert forecast("cosine", "1", "cosine", "--schedule", "wsd") == forecast("1", "--schedule", "wsd")


def test_a_run_whose_start_was_not_watched_is_refused():
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        store_run(store, "late", COSINE, first=900)
    assert "late) must have its learning rate from the start, got one first read at step 900" in refused(
        "late", "--schedule", "wsd"
    )


@pytest.mark.parametrize("said", ["ran every 300 steps rather than every 1", "never ran: needs about 1 ms"])
def test_a_run_whose_rate_was_hardly_looked_at_is_refused_unless_it_was_logged(said):
    about = {"left_out": {"learning rate": said}}
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        for name, at in (("fast", (36, 110)), ("logged", range(1, 601, 50))):
            run = store.begin(name, about)
            readings = [Reading(step, "learning rate", COSINE[step]) for step in at]
            readings += [Reading(step, "loss", 3 - step / 600) for step in range(2, 600)]
            store.write(run, 600, [(0.0, one) for one in readings], [])
    found = refused("fast", "--schedule", "wsd")
    assert f"got 490 steps without a reading, since the watch, within its time budget, {said}" in found
    assert len(forecast("logged", "--schedule", "cosine:warmup=0")["schedules"]) == 1


def test_forecasts_beyond_what_the_runs_can_tell_are_marked():
    with RunStore("runs/thalweg.sqlite", write=True) as store:
        run = store_run(store, "half", COSINE)
        # A run that has got a third of its way, and lost some of its readings.
        third = store.begin("third", {})
        readings = [one for one in store.readings(run, "learning rate") if one.step <= 600]
        readings += [one for one in store.readings(run, "loss") if one.step <= 600]
        readings.append(Reading(601, "loss", float("nan")))
        store.write(third, 600, [(0.0, one) for one in readings], [])
    found = forecast("third", "--schedule", "linear:steps=2000", "--schedule", "constant")
    lost, going, far = found["notes"]
    assert going.endswith(
        "(third) has not ended: schedules are as long as it is so far unless steps= says more"
    )
    assert lost.endswith("that are not finite were left out, 1 in number and the first at step 601")
    assert far.startswith("linear:steps=2000 goes beyond what the runs can tell: it anneals 21 times as far")
    linear, constant = found["schedules"]
    law = annealing_areas(COSINE[:600], 0.999)[1][:599].max()
    rates = planned_rates("linear:steps=2000", COSINE)
    assert linear["stretch"] == pytest.approx(annealing_areas(rates, 0.999)[1].max() / law, rel=0.02)
    assert constant["stretch"] < 2 < linear["stretch"]
    result = runner.invoke(app, ["forecast", "third", "--schedule", "linear:steps=2000"])
    assert result.stdout.count("Note: ") == 3
    assert forecast("1", "--schedule", "wsd", "--schedule", "linear")["notes"] == []
