"""A store of an earlier thalweg is read as it is and upgraded when it is written; a later one is refused."""

from __future__ import annotations

import math
import random
import sqlite3
import subprocess
import sys

import pytest

from thalweg.watch import Finding, Reading, RunStore

# The tables as thalweg made them before it kept extremes.
FIRST = """
create table runs (id integer primary key, name text not null, started real not null, seen real not null,
    ended real, outcome text, steps integer not null default 0, about text not null);
create table series (id integer primary key, run integer not null references runs, name text not null,
    layers text not null, unique (run, name, layers));
create table readings (series integer not null references series, step integer not null, time real not null,
    value real, layers blob, extra text);
create index readings_by_step on readings (series, step);
create table findings (id integer primary key, run integer not null references runs, step integer not null,
    time real not null, finding text not null);
"""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.sqlite"
    source = random.Random(0)
    db = sqlite3.connect(path)
    db.execute("pragma journal_mode = wal")
    db.executescript(FIRST)
    db.execute("pragma application_id = 1952997740")
    db.execute("pragma user_version = 1")
    for run in (1, 2):
        row = (run, f"run {run}", 1.0, 2.0, 3000, "{}")
        db.execute("insert into runs (id, name, started, seen, steps, about) values (?, ?, ?, ?, ?, ?)", row)
        db.execute("insert into series values (?, ?, 'loss', '[]')", (run, run))
        rows = [(run, step, 0.0, source.gauss(0, 1), None, None) for step in range(1, 3001)]
        rows[100] = (run, 101, 0.0, math.nan, None, None)
        rows[200] = (run, 201, 0.0, math.inf, None, None)
        db.executemany("insert into readings values (?, ?, ?, ?, ?, ?)", rows)
    db.execute(
        "insert into findings values (1, 1, 5, 0.0, ?)",
        (
            '{"name": "not finite", "step": 5, "message": "", "evidence": {}, "severity": "critical", '
            '"layers": [], "papers": [], "remedies": []}',
        ),
    )
    db.commit()
    db.close()
    return path


def test_reading_an_old_store_changes_nothing_and_gives_everything(old):
    before = old.read_bytes()
    with RunStore(old) as store:
        assert [one.name for one in store.runs()] == ["run 1", "run 2"]
        assert len(store.readings(1, "loss")) == 3000
        assert store.findings(1) == [Finding("not finite", 5, "", {}, "critical")]
        curve = store.overview(1, "loss", 100)
        finite = [one for one in store.readings(1, "loss") if one.finite]
        assert len(curve) <= 100 and {one.step for one in curve} <= {one.step for one in finite}
        assert max(one.value for one in curve) == max(one.value for one in finite)
    assert old.read_bytes() == before


def test_writing_to_an_old_store_upgrades_it_and_loses_nothing(old):
    with RunStore(old) as store:
        readings = {run: store.readings(run, "loss") for run in (1, 2)}
        curves = {points: store.overview(1, "loss", points) for points in (8, 50, 300)}
    with RunStore(old, write=True) as store:
        assert store.db.execute("pragma user_version").fetchone() == (2,)
        for run, before in readings.items():
            assert [str(one) for one in store.readings(run, "loss")] == [str(one) for one in before]
        for points, curve in curves.items():
            found = store.overview(1, "loss", points)
            # Stretches begin at multiples of 16 now, so that the curves are not the same point by point.
            assert len(found) <= points
            for extreme in (min, max):
                assert extreme(found, key=lambda one: one.value) == extreme(curve, key=lambda one: one.value)
        assert [one.name for one in store.findings(1)] == ["not finite"]
        run = store.begin("new", {})
        store.write(run, 1, [(0.0, Reading(1, "loss", 1.0))], [])
    with RunStore(old) as store:
        assert store.overview(3, "loss") == [Reading(1, "loss", 1.0)]


def test_an_upgraded_store_keeps_the_extremes_that_a_new_one_would(old, tmp_path):
    RunStore(old, write=True).close()
    with RunStore(old) as upgraded, RunStore(tmp_path / "new", write=True) as new:
        for run in (1, 2):
            assert new.begin(f"run {run}", {}) == run
            new.write(run, 3000, [(0.0, one) for one in upgraded.readings(run, "loss")], [])
        table = "select * from coarse order by series, width, bucket"
        assert upgraded.db.execute(table).fetchall() == new.db.execute(table).fetchall()


def test_an_upgrade_that_is_cut_short_leaves_the_old_store(old, monkeypatch):
    before = sqlite3.connect(old).execute("select count(*), sum(step) from readings").fetchone()

    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr("thalweg.watch._store_schema.summarise", full)
        with pytest.raises(ValueError, match=f"{old}.*cannot be written.*full"):
            RunStore(old, write=True)
    with sqlite3.connect(old) as db:
        assert db.execute("pragma user_version").fetchone() == (1,)
        assert db.execute("select count(*), sum(step) from readings").fetchone() == before
        assert db.execute("select count(*) from sqlite_master where name = 'coarse'").fetchone() == (0,)
    with RunStore(old, write=True) as store:
        assert len(store.readings(2, "loss")) == 3000


def test_two_processes_that_upgrade_at_once_both_go_on(old):
    opens = "from thalweg.watch.store import RunStore\nimport sys\nstore = RunStore(sys.argv[1], write=True)"
    code = f"{opens}\nstore.begin('x', {{}})"
    children = [subprocess.Popen([sys.executable, "-c", code, str(old)]) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    with RunStore(old) as store:
        assert len(store.runs()) == 5 and len(store.readings(1, "loss")) == 3000


@pytest.mark.parametrize("write", [True, False])
def test_a_newer_store_is_refused_by_both_versions(tmp_path, write):
    path = tmp_path / "s"
    RunStore(path, write=True).close()
    with sqlite3.connect(path) as db:
        db.execute("pragma user_version = 3")
    db.close()
    with pytest.raises(ValueError, match="has schema 3, this thalweg reads up to 2"):
        RunStore(path, write=write)
