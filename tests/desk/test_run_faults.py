"""Whatever happens to a run store that is served: a clear page and a line on the health page, never a 500."""

from __future__ import annotations

import os
import random
import sqlite3

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.watch import Finding, Reading, RunStore

PLACES = (
    "/runs",
    "/runs/1",
    "/runs/1?show=loss",
    "/runs/1/findings/1",
    "/runs/1/phases",
    "/runs/compare?run=1&run=2",
    "/api/runs",
    "/api/runs/1/curve",
    "/api/runs/1/layers?name=loss",
    "/api/runs/1/findings",
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("thalweg.desk.run_source.WAIT", 0.05)


def made(path, name="mine", runs=2):
    """A store with some runs that have ended."""
    source = random.Random(0)
    with RunStore(path, write=True) as store:
        for _ in range(runs):
            run = store.begin(name, {"lr": 0.1})
            rows = [
                (0.0, Reading(step, "loss", source.random(), {"a": 1.0, "b": 2.0})) for step in range(1, 500)
            ]
            store.write(run, 499, rows, [Finding("loss spike", 5, "It spikes.", {"times": 3.0})])
            store.end(run, "finished")
    return path


@pytest.fixture
def path(tmp_path):
    return made(tmp_path / "runs.sqlite")


@pytest.fixture
def client(path, tmp_path):
    return TestClient(create_app(path, folder=tmp_path / "desk"), raise_server_exceptions=False)


def troubles(client):
    return [one.what for one in client.app.state.problems.all() if one.source == "run store"]


def test_all_pages_work_while_nothing_is_wrong(client):
    for place in PLACES:
        assert client.get(place).status_code == 200, place
    assert troubles(client) == []


def test_a_file_that_is_no_store_says_so_until_it_is_mended(client, path):
    whole = path.read_bytes()
    for side in ("-wal", "-shm"):
        path.with_name(path.name + side).unlink(missing_ok=True)
    path.write_bytes(b"not a database, but long enough to be looked at " * 100)
    for place in PLACES:
        answer = client.get(place)
        assert answer.status_code == 503 and "is not a run store" in answer.text, place
    assert len(troubles(client)) == 1 and "is not a run store" in troubles(client)[0]
    path.write_bytes(whole)
    assert client.get("/runs").status_code == 200 and troubles(client) == []


@pytest.mark.parametrize("seed", range(6))
def test_damage_anywhere_in_the_file_is_never_a_500(client, path, seed):
    with sqlite3.connect(path) as db:
        db.execute("pragma journal_mode = delete")
    db.close()
    source = random.Random(seed)
    data = bytearray(path.read_bytes())
    for _ in range(40):
        place = source.randrange(200, len(data) - 64)
        data[place : place + 64] = source.randbytes(64)
    path.write_bytes(data)
    answers = {place: client.get(place).status_code for place in PLACES}
    assert set(answers.values()) <= {200, 404, 503}, answers


def test_a_store_that_somebody_has_locked_is_waited_for_and_then_said(client, path):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("pragma locking_mode = exclusive")
    db.execute("begin exclusive")
    try:
        answer = client.get("/runs/1")
        assert answer.status_code == 503 and "locked" in answer.text and answer.headers["retry-after"]
        assert "locked" in troubles(client)[0]
    finally:
        db.execute("rollback")
        db.close()
    assert client.get("/runs/1").status_code == 200 and troubles(client) == []


def test_a_store_that_is_removed_is_a_trouble_and_one_that_never_was_is_not(client, path, tmp_path):
    assert client.get("/runs").status_code == 200
    path.unlink()
    answer = client.get("/runs")
    assert answer.status_code == 503 and "is gone" in answer.text and "is gone" in troubles(client)[0]
    fresh = TestClient(create_app(tmp_path / "later.sqlite"), raise_server_exceptions=False)
    assert fresh.get("/runs").status_code == 200 and "No run yet" in fresh.get("/runs").text
    assert fresh.get("/runs/1").status_code == 404 and fresh.get("/api/runs").json() == []
    # A run that begins makes the file before there is anything in it.
    with sqlite3.connect(tmp_path / "later.sqlite") as db:
        db.execute("pragma journal_mode = wal")
    db.close()
    assert "No run yet" in fresh.get("/runs").text and fresh.get("/runs/1").status_code == 404
    assert fresh.get("/api/runs").json() == [] and fresh.app.state.problems.all() == []
    made(tmp_path / "later.sqlite")
    assert fresh.get("/runs/1").status_code == 200


def test_a_store_that_is_replaced_is_the_one_that_is_shown(client, path, tmp_path):
    assert "mine" in client.get("/runs").text
    other = made(tmp_path / "other.sqlite", name="another", runs=3)
    os.replace(other, path)
    text = client.get("/runs").text
    assert "another" in text and "mine" not in text and client.get("/runs/3").status_code == 200


def test_a_store_of_an_earlier_version_is_shown_as_it_is(client, path):
    with sqlite3.connect(path) as db:
        for statement in ("drop table coarse", "drop index gaps", "drop index findings_by_run"):
            db.execute(statement)
        db.execute("pragma user_version = 1")
    db.close()
    for place in PLACES:
        assert client.get(place).status_code == 200, place
    assert len(client.get("/api/runs/1/curve?points=100").json()["step"]) > 20


def test_a_store_of_a_later_version_is_refused_in_words(client, path):
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    db.close()
    answer = client.get("/runs")
    assert answer.status_code == 503 and "has schema 99" in answer.text and troubles(client)


def test_damaged_rows_are_told_and_everything_else_is_shown(client, path):
    with sqlite3.connect(path) as db:
        db.execute("update runs set about = '{' where id = 1")
        db.execute("update findings set finding = 'x' where run = 2")
        db.execute("update readings set value = 'text' where series = 1 and step = 7")
        db.execute("update readings set layers = x'01' where series = 1 and step = 8")
    db.close()
    for place in (*PLACES, "/runs/2", "/api/runs/2/findings"):
        assert client.get(place).status_code in (200, 503), place
    curve = client.get("/api/runs/1/curve").json()
    assert [step for step, value in zip(curve["step"], curve["value"], strict=True) if value is None] == [7]
    assert client.get("/runs").status_code == 200 and client.get("/runs/2").status_code == 200
    assert "cannot be read" in client.get("/runs/2").text
    rows = [one.what for one in client.app.state.problems.all() if one.source == "rows of the run store"]
    assert any("run 1" in one for one in rows) and any("findings of run 2" in one for one in rows)
