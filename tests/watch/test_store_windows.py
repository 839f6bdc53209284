"""A window of a curve shows what all readings in it would; gaps, layers, and what is new behind a cursor."""

from __future__ import annotations

import math
import random
import time
from itertools import pairwise

import pytest
import torch
from torch import nn

import thalweg
from thalweg.watch import Finding, Reading, RunStore
from thalweg.watch.store_tail import last_row, layers_at, readings_behind

COUNT = 70_000


def noise(step):
    return random.Random(step).gauss(0, 1)


@pytest.fixture(scope="module")
def rows():
    return {step: noise(step) for step in range(1, COUNT + 1)}


@pytest.fixture(scope="module")
def path(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("store") / "s"
    with RunStore(path, write=True) as store:
        store.begin("mine", {})
        store.write(1, COUNT, [(0.0, Reading(step, "loss", value)) for step, value in rows.items()], [])
    return path


@pytest.mark.parametrize("points", [20, 101, 600])
@pytest.mark.parametrize(
    "window", [(1, 70_000), (17, 69_999), (5_000, 5_400), (4_095, 66_000), (30_001, 47_777), (65_536, 65_536)]
)
def test_a_window_has_its_own_extremes_and_ends_and_nothing_from_outside(path, rows, window, points):
    low, high = window
    with RunStore(path) as store:
        found = {one.step: one.value for one in store.overview(1, "loss", points, low=low, high=high)}
    inside = {step: value for step, value in rows.items() if low <= step <= high}
    assert len(found) <= points and found.items() <= inside.items()
    assert {min(inside), max(inside), min(inside, key=inside.get), max(inside, key=inside.get)} <= set(found)
    # Zooming in ends at every single reading.
    assert len(inside) > points or found == inside


@pytest.mark.parametrize("window", [(3, 60_000), (1_111, 44_444)])
def test_every_stretch_of_a_window_keeps_its_extremes(path, rows, window):
    low, high = window
    with RunStore(path) as store:
        found = [one.step for one in store.overview(1, "loss", 104, low=low, high=high)]
    width = -(-(high - low + 1) // 50)
    finest = max(one for one in (1, 16, 256, 4096) if one <= width)
    width = -(-width // finest) * finest
    for start in range(low // width, high // width + 1):
        part = {
            step: rows[step] for step in range(max(low, start * width), min(high + 1, (start + 1) * width))
        }
        assert {min(part, key=part.get), max(part, key=part.get)} <= set(found)


def test_a_run_that_stays_broken_is_no_more_work_than_one_that_ends_there(tmp_path):
    work = {}
    for last in (3_000, 60_000):
        values = {step: noise(step) if step <= 3_000 else math.nan for step in range(1, last + 1)}
        with RunStore(tmp_path / str(last), write=True) as store:
            store.begin("mine", {})
            store.write(1, last, [(0.0, Reading(step, "loss", value)) for step, value in values.items()], [])
            ticks = []
            # Called once in a hundred of SQLite's own steps.
            store.db.set_progress_handler(lambda ticks=ticks: ticks.append(1), 100)
            for points in (100, 600, 5_000):
                found = store.overview(1, "loss", points)
                assert found[0].step == 1 and found[-1].step == 3_000
            assert store.overview(1, "loss", 100, low=3_001) == []
            found = store.overview(1, "loss", 100, low=2_999, high=50_000)
            assert [one.step for one in found] == [2_999, 3_000]
            work[last] = len(ticks)
    assert work[60_000] < 1.1 * work[3_000]


def test_a_window_outside_of_the_run_is_empty(path):
    with RunStore(path) as store:
        assert store.overview(1, "loss", low=COUNT + 1) == []
        assert store.overview(1, "loss", low=10, high=9) == []


def test_gaps_are_the_stretches_with_values_that_are_not_finite(tmp_path):
    broken = {
        500: math.nan,
        501: math.inf,
        20_000: -math.inf,
        **dict.fromkeys(range(30_000, 40_000), math.nan),
    }
    readings = [(0.0, Reading(step, "loss", broken.get(step, 1.0))) for step in range(1, 50_001)]
    with RunStore(tmp_path / "s", write=True) as store:
        store.begin("mine", {})
        store.write(1, 50_000, readings, [])
        found = store.gaps(1, "loss", 100)
        assert set(found) <= set(broken) and len(found) <= 100
        assert 500 in found and 20_000 in found and found == sorted(found)
        inside = [step for step in found if step >= 30_000]
        assert max(b - a for a, b in pairwise(inside)) <= 2 * 40_000 // 100
        assert store.gaps(1, "loss", 100, low=501, high=502) == [501]
        assert store.gaps(1, "loss", 100, low=600, high=700) == []
        plan = " ".join(
            str(row)
            for row in store.db.execute(
                "explain query plan select step from readings where series = 1 "
                "and (value is null or abs(value) >= 9e999) and step between 1 and 9 order by step limit 1"
            )
        )
        assert "using index gaps" in plan.lower() or "using covering index gaps" in plan.lower()


def test_a_store_from_before_gaps_has_none_until_it_is_written(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        store.begin("mine", {})
        store.write(1, 1, [(0.0, Reading(1, "loss", math.nan))], [])
        store.db.execute("drop index gaps")
    with RunStore(tmp_path / "s") as store:
        assert store.gaps(1, "loss") == []
    with RunStore(tmp_path / "s", write=True) as store:
        assert store.gaps(1, "loss") == [1]


def test_layers_are_given_at_the_steps_that_are_asked_for(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {})
        readings = [Reading(step, "norm", 1.0, {"a": step, "b": 2.0 * step}) for step in range(1, 1001)]
        readings.append(Reading(1001, "norm", 1.0, {"b": 7.0, "c": math.nan}))
        store.write(run, 1001, [(0.0, one) for one in readings], [])
        found = layers_at(store, run, "norm", [1, 600, 1000, 1001, 5000])
        assert found["a"][:3] == [1, 600, 1000] and all(map(math.isnan, found["a"][3:]))
        assert found["b"][:4] == [2, 1200, 2000, 7] and all(map(math.isnan, found["c"]))
        assert len(layers_at(store, run, "norm", range(1, 1002))["b"]) == 1001
        assert layers_at(store, run, "none", [1]) == {}


def test_a_cursor_gives_only_what_has_come_since_whatever_its_step(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store, RunStore(tmp_path / "s") as reader:
        mine, other = store.begin("mine", {}), store.begin("other", {})
        store.write(mine, 5, [(0.0, Reading(5, "loss", 1.0))], [])
        cursor = last_row(reader)
        assert readings_behind(reader, mine, cursor, ["loss"]) == {}
        store.write(other, 9, [(0.0, Reading(9, "loss", 9.0))], [])
        # An evaluation that took long may be logged to a step that has passed.
        late = [Reading(6, "loss", 2.0), Reading(4, "accuracy", 0.5), Reading(3, "loss", math.inf)]
        store.write(mine, 6, [(0.0, one) for one in late], [])
        found = readings_behind(reader, mine, cursor, ["loss", "accuracy", "unknown"])
        assert found["accuracy"] == [(4, 0.5)] and found["loss"][0] == (6, 2.0)
        assert found["loss"][1][0] == 3 and math.isnan(found["loss"][1][1])
        assert readings_behind(reader, mine, last_row(reader), ["loss"]) == {}


def test_damaged_rows_are_told_and_the_others_given(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {})
        store.write(run, 2, [], [Finding("a", 1, "", {}), Finding("b", 2, "", {}), Finding("c", 2, "", {})])
        store.db.execute("update findings set finding = '{' where id = 2")
        with pytest.raises(ValueError, match="row 2 of the findings of run 1 cannot be read"):
            store.findings(run)
        told = []
        names = [one.name for one in store.findings(run, damaged=told.append)]
        assert names == ["a", "unreadable finding", "c"] and len(told) == 1
        assert [one.name for one in store.findings(run, 2)] == ["c"]
        for about in ("{", "[]", None):
            store.db.execute("pragma ignore_check_constraints = on")
            store.db.execute("update runs set about = ?", (about or "",))
            assert "unreadable" in store.runs()[0].about and store.runs()[0].name == "mine"
        assert store.run(run).id == run and store.run(99) is None


def test_a_run_that_goes_on_says_what_watching_has_cost_so_far(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.watch.looks.TELLING", 0.0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with thalweg.watch(model, optimizer, store=tmp_path / "s", budget=0.5) as run:
        for _ in range(50):
            model(torch.ones(8, 4)).square().mean().backward()
            optimizer.step()
            time.sleep(0.001)
        assert run.findings == []
        with RunStore(tmp_path / "s") as store:
            about = store.runs()[0].about
        assert about["budget"] == 0.5 and about["watching"] > 0 and isinstance(about["left_out"], dict)
