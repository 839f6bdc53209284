"""Curves over HTTP: few points that hold every extreme, windows in full detail, tails, gaps, layers."""

from __future__ import annotations

import math
import random

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.run_curves import thin
from thalweg.watch import Reading, RunStore

COUNT = 20_000


@pytest.fixture(scope="module")
def values():
    source = random.Random(0)
    found = {step: source.gauss(0, 1) for step in range(1, COUNT + 1)}
    return found | {7_777: 90.0, 12_345: -90.0, 5: math.nan, 15_000: math.inf, 15_001: math.nan}


@pytest.fixture(scope="module")
def client(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    with RunStore(path, write=True) as store:
        run = store.begin("mine", {})
        rows = [
            (0.0, Reading(step, "loss", value, {"a": step, "b": -step})) for step, value in values.items()
        ]
        store.write(run, COUNT, rows, [])
    return TestClient(create_app(path), raise_server_exceptions=False)


def curve(client, **about):
    answer = client.get("/api/runs/1/curve", params=about)
    assert answer.status_code == 200, answer.text
    return list(zip(answer.json()["step"], answer.json()["value"], strict=True))


def test_few_points_hold_the_spikes_the_ends_and_the_gaps(client, values):
    found = curve(client, points=60)
    points = {step: value for step, value in found if value is not None}
    assert len(points) <= 60 and points[7_777] == 90.0 and points[12_345] == -90.0
    assert min(points) == 1 and max(points) == COUNT
    assert {step for step, value in found if value is None} == {5, 15_000}
    assert found == sorted(found, key=lambda point: point[0])


def test_a_window_is_given_reading_by_reading(client, values):
    found = curve(client, **{"from": 14_990, "to": 15_010}, points=600)
    finite = {
        step: value for step, value in values.items() if 14_990 <= step <= 15_010 and math.isfinite(value)
    }
    assert {step: value for step, value in found if value is not None} == finite
    # One null for the gap, between its neighbours, is all that a line needs to break.
    assert [step for step, value in found if value is None] == [15_000]


def test_a_tail_is_only_what_lies_behind_the_known(client, values):
    found = curve(client, after=COUNT - 3)
    assert [step for step, _ in found] == [COUNT - 2, COUNT - 1, COUNT]
    assert curve(client, after=COUNT) == []


def test_layers_come_at_the_steps_of_the_whole(client):
    found = client.get("/api/runs/1/layers", params={"name": "loss", "points": 50}).json()
    assert len(found["step"]) <= 50 and set(found["layers"]) == {"a", "b"}
    assert found["layers"]["a"] == found["step"] and found["layers"]["b"] == [-one for one in found["step"]]


def test_what_is_not_there_is_an_empty_curve_and_what_cannot_be_is_refused(client):
    assert curve(client, name="no such reading") == []
    assert client.get("/api/runs/99/curve").status_code == 404
    for wrong in ("points=7", "points=5001", "from=-1", "to=x", "after=-2", f"from={2**63}"):
        assert client.get(f"/api/runs/1/curve?{wrong}").status_code == 422, wrong
    assert client.get(f"/api/runs/{2**80}/curve").status_code in (404, 422)


def test_steps_that_a_browser_cannot_tell_apart_are_in_no_curve(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {})
        store.write(run, 2, [(0.0, Reading(step, "loss", 1.0)) for step in (1, 2, 2**53 - 1)], [])
        store.db.execute(
            "insert into readings select series, 9007199254740993, 0, 9, null, null from readings"
        )
    client = TestClient(create_app(tmp_path / "s"))
    assert [step for step, _ in curve(client)] == [1, 2, 2**53 - 1]


@pytest.mark.parametrize("count", [3, 299, 300, 301, 5_000])
def test_points_in_hand_are_thinned_without_losing_extremes_or_gaps(count):
    source = random.Random(count)
    points = [(step, source.gauss(0, 1)) for step in range(count)]
    points[count // 2] = (count // 2, math.nan)
    found = thin(points, 300)
    assert len(found["step"]) <= 300 or count <= 300
    finite = [value for _, value in points if math.isfinite(value)]
    kept = [value for value in found["value"] if value is not None]
    assert (min(kept), max(kept)) == (min(finite), max(finite)) and None in found["value"]
    assert found["step"] == sorted(found["step"]) and found["step"][-1] == count - 1
    assert count > 300 or found["step"] == list(range(count))
