"""The store survives killed processes, full disks and other people's files."""

import hashlib
import json
import math
import sqlite3
import subprocess
import sys
import time

import pytest

import thalweg
from thalweg.watch import Finding, Reading, RunStore, recorder
from thalweg.watch.readings import Remedy

CHILD = """
import sys, time, torch, thalweg
p = torch.nn.Parameter(torch.ones(1))
opt = torch.optim.SGD([p], lr=0.1)
said = open(sys.argv[2], "w", buffering=1)
with thalweg.watch(None, opt, budget=0, store=sys.argv[1]) as run:
    for step in range(1, 100_000):
        run.log(loss=float(step))
        said.write(f"{step}\\n")
        opt.step()
        time.sleep(0.002)
"""
SECOND = 430  # such steps, of 2.3 ms; by the clock, time in which a busy machine held it up would count


def test_a_killed_process_loses_at_most_its_last_second(tmp_path):
    assert recorder.EVERY <= 0.5  # between two writes, each of which may take as long again
    store, said = tmp_path / "runs.sqlite", tmp_path / "said"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(store), str(said)])
    deadline = time.monotonic() + 240

    def done():
        return said.read_text().count("\n") if said.exists() else 0

    while done() <= SECOND:
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    with RunStore(store) as live:
        for _ in range(40):  # whenever it were killed
            steps = done()
            assert steps - len(live.readings(1, "loss")) <= SECOND
            time.sleep(0.05)
        assert live.readings(1, "loss")
    child.kill()
    child.wait()
    with RunStore(store) as opened:
        (info,) = opened.runs()
        steps = [one.step for one in opened.readings(1, "loss")]
    assert info.ended is None and info.outcome is None
    assert steps == list(range(1, len(steps) + 1))
    assert done() - len(steps) <= SECOND
    assert sqlite3.connect(store).execute("pragma integrity_check").fetchone() == ("ok",)


def test_readings_and_findings_come_back_as_they_went_in(tmp_path):
    layers = {"a.weight": 0.5, "b.weight": math.inf, "c": -2.25}
    readings = [
        Reading(1, "gradient norm", 1.5, layers, {}),
        Reading(2, "gradient norm", math.inf, {**layers, "d": 1.0}, {}),
        Reading(3, "gradient norm", 2.5, layers, {}),
        Reading(3, "sharpness", 7.0, {}, {"limit": math.inf, "ratio": 0.25}),
    ]
    remedy = Remedy("clip", "x = 1\ny = 2", "spam")
    finding = Finding(
        "gradient spike", 3, "it's", {"n": math.inf, "m": 1.0}, "warning", ("b",), ("spam",), (remedy,)
    )
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {"lr": 0.1})
        other = store.begin("other", {})
        store.write(run, 3, [(time.time(), one) for one in readings], [finding])
        store.end(run, "finished")
    with RunStore(tmp_path / "s") as store:
        assert store.readings(run, "gradient norm") == readings[:3]
        assert store.readings(run, "gradient norm", after=2) == readings[2:3]
        assert store.readings(run, "sharpness") == readings[3:]
        assert store.names(run) == ["gradient norm", "sharpness"] and store.names(other) == []
        assert store.findings(run) == [finding] and store.findings(other) == []
        mine, another = store.runs()
    assert (mine.name, mine.about, mine.steps, mine.outcome) == ("mine", {"lr": 0.1}, 3, "finished")
    assert another.ended is None


def test_findings_are_json_that_browsers_read(tmp_path):
    described = Finding("not finite", 1, "", {"loss": math.nan}).as_dict()
    json.dumps(described, allow_nan=False)
    assert math.isnan(Finding.from_dict(described).evidence["loss"])


@pytest.mark.parametrize("step", [-1, 2**53, 2**63])
def test_a_step_that_no_chart_could_place_is_refused_and_nothing_of_it_stored(tmp_path, step):
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {})
        last = 2**53 - 1
        store.write(run, last, [(0.0, Reading(one, "loss", 1.0)) for one in (0, last)], [])
        with pytest.raises(ValueError, match=rf"step of 'loss' must be at least 0 and .*got {step}"):
            store.write(run, step, [(0.0, Reading(one, "loss", 1.0)) for one in (5, step)], [])
        assert [one.step for one in store.readings(run, "loss", -1)] == [0, last]
        assert [one.step for one in store.overview(run, "loss")] == [0, last]


def test_a_write_that_fails_half_way_stores_nothing(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("mine", {})
        bad = Reading(2, "loss", 1.0, {}, {"x": "not a number"})
        with pytest.raises(TypeError):
            store.write(run, 2, [(0.0, Reading(1, "loss", 1.0)), (0.0, bad)], [])
        assert store.readings(run, "loss") == []
        store.write(run, 1, [(0.0, Reading(1, "loss", 4.0))], [])
        assert [one.value for one in store.readings(run, "loss")] == [4.0]


def foreign(path):
    with sqlite3.connect(path) as db:
        db.execute("create table recipes (dish text)")
    db.close()


def newer(path):
    RunStore(path, write=True).close()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 99")
    db.close()


OTHERS = {
    "text": (lambda path: path.write_text("step,loss\n" * 500), "is not a run store"),
    "another database": (foreign, "is not a run store of thalweg"),
    "newer schema": (newer, "has schema 99, this thalweg reads up to 2"),
    "directory": (lambda path: path.mkdir(), "cannot be opened|existing run store, got .*: a folder"),
}


@pytest.mark.parametrize("write", [True, False], ids=["write", "read"])
@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_store_is_refused_by_path_and_left_alone(tmp_path, kind, write):
    path = tmp_path / "precious"
    make, words = OTHERS[kind]
    make(path)
    before = None if path.is_dir() else hashlib.sha256(path.read_bytes()).digest()
    with pytest.raises(ValueError, match=words) as refused:
        RunStore(path, write=write)
    assert str(path) in str(refused.value)
    # SQLite may leave its empty log beside a database that it only read.
    assert {one.name.removesuffix("-wal").removesuffix("-shm") for one in tmp_path.iterdir()} == {"precious"}
    assert path.is_dir() or hashlib.sha256(path.read_bytes()).digest() == before


def test_a_missing_file_is_not_made_by_reading_it(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        RunStore(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_nothing_can_be_made_is_refused_before_training(small):
    with pytest.raises(ValueError, match="/proc/1/nothing/s"):
        thalweg.watch(small.model, small.opt, store="/proc/1/nothing/s")
    assert not small.model._forward_hooks


def test_a_read_only_store_is_read_and_not_written(tmp_path, monkeypatch):
    path = tmp_path / "s"
    with RunStore(path, write=True) as store:
        store.begin("mine", {})
    connect = sqlite3.connect

    def nobody_may_write(place, **options):
        return connect(place.replace("mode=rwc", "mode=ro"), **options)

    monkeypatch.setattr(sqlite3, "connect", nobody_may_write)
    with pytest.raises(ValueError, match="cannot be written"):
        RunStore(path, write=True)
    with RunStore(path) as store:
        assert [one.name for one in store.runs()] == ["mine"]


def test_a_full_disk_warns_once_loses_nothing_and_is_made_up_for_when_space_returns(small, tmp_path):
    path = tmp_path / "s"
    with pytest.warns(UserWarning, match="full") as caught:
        run = thalweg.watch(small.model, small.opt, budget=0, store=path)
        db = run.recorder.store.db
        (pages,) = db.execute("pragma page_count").fetchone()
        db.execute(f"pragma max_page_count = {pages}")
        for step in range(3000):
            run.log(count=float(step))
            small.opt.step()
            if step % 1000 == 999:
                assert run.findings == []
        db.execute("pragma max_page_count = 1000000")
        run.close()
    assert len(caught) == 1 and run.step == 3000 and run.recorder.lost == 0
    with RunStore(path) as store:
        assert [one.value for one in store.readings(1, "count")] == [float(step) for step in range(3000)]
    assert sqlite3.connect(path).execute("pragma integrity_check").fetchone() == ("ok",)


def test_a_run_that_cannot_go_on_since_the_disk_is_full_is_refused_before_training(small, tmp_path):
    path = tmp_path / "s"
    with RunStore(path, write=True) as store:
        store.end(store.begin("mine", {}), "finished")
        store.db.execute(f"pragma max_page_count = {store.db.execute('pragma page_count').fetchone()[0]}")
        with pytest.raises(ValueError, match=f"store '{path}' cannot be written: .*full"):
            store.resume(1, 0, text="x" * 100_000)
        assert store.run(1).outcome == "finished" and store.run(1).about == {}


def test_what_a_disk_that_stays_full_lost_is_said_at_the_end(small, tmp_path):
    path = tmp_path / "s"
    with pytest.warns(UserWarning) as caught:
        run = thalweg.watch(small.model, small.opt, budget=0, store=path)
        db = run.recorder.store.db
        (pages,) = db.execute("pragma page_count").fetchone()
        db.execute(f"pragma max_page_count = {pages}")
        for step in range(3000):
            run.log(count=float(step))
            small.opt.step()
        run.close()
    said = [str(one.message) for one in caught]
    assert len(said) == 2 and "3000 readings and 0 findings could not be stored" in said[1]
    with RunStore(path) as store:
        assert store.readings(1, "count") == []
    assert sqlite3.connect(path).execute("pragma integrity_check").fetchone() == ("ok",)
