"""Processes killed at any moment, disks that are full, several writers, readers meanwhile."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import pytest

import thalweg
from thalweg.watch import Reading, RunStore
from thalweg.watch._store_schema import WIDTHS

KILLS = 12

WRITER = """
import os, sys, time
from thalweg.watch.readings import Reading
from thalweg.watch.store import RunStore
store = RunStore(sys.argv[1], write=True)
run = store.begin(sys.argv[2], {})
batches = int(sys.argv[3])
print(run, 0, flush=True)
for batch in range(1, batches + 1):
    steps = range(10 * batch - 9, 10 * batch + 1)
    store.write(run, steps[-1], [(0.0, Reading(s, "loss", float(-s), {"a": 1.0})) for s in steps], [])
    print(run, steps[-1], flush=True)
    time.sleep(0.001)
    while 2 * batch == batches and len(sys.argv) > 4 and not os.path.exists(sys.argv[4]):
        time.sleep(0.01)
"""


def writer(path, name, batches, *gate):
    """``gate``: a file without which it stops half way."""
    command = [sys.executable, "-c", WRITER, str(path), name, str(batches), *map(str, gate)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def whole(path):
    db = sqlite3.connect(path)
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    # The extremes that are kept are those of the readings.
    for width in WIDTHS:
        kept = f"select series, bucket, low, high from coarse where width = {width} order by 1, 2"
        there = f"select series, step / {width}, min(value), max(value) from readings group by 1, 2"
        assert db.execute(kept).fetchall() == db.execute(there).fetchall()
    db.close()


def test_whenever_a_process_is_killed_what_it_committed_is_there(tmp_path):
    path, source = tmp_path / "s", random.Random(0)
    for kill in range(KILLS):
        child = writer(path, f"run {kill}", 100_000)
        said = [child.stdout.readline()] if kill else []
        time.sleep(source.uniform(0, 0.4))
        os.kill(child.pid, signal.SIGKILL)
        said += child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
        said = [tuple(map(int, line.split())) for line in said if line.endswith("\n")]
        if not said:
            continue
        run, last = said[-1]
        with RunStore(path) as store:
            info = next(one for one in store.runs() if one.id == run)
            steps = [one.step for one in store.readings(run, "loss")]
        # All that was said to be there, and of the batch that was being written all or nothing.
        assert steps == list(range(1, len(steps) + 1)) and len(steps) % 10 == 0
        assert len(steps) in (last, last + 10) and info.steps == len(steps)
    with RunStore(path) as store:
        assert len(store.runs()) >= KILLS - 1
    whole(path)


def test_two_writers_at_once_lose_nothing_and_a_reader_sees_whole_batches_meanwhile(tmp_path):
    path, batches, gate = tmp_path / "s", 300, tmp_path / "gate"
    RunStore(path, write=True).close()
    children = [writer(path, name, batches, gate) for name in ("one", "two")]
    seen = {1: 0, 2: 0}
    looks = 0
    with RunStore(path) as store:
        while any(child.poll() is None for child in children):
            for run in seen:
                count = len(store.readings(run, "loss"))
                assert count % 10 == 0 and count >= seen[run]
                curve = store.overview(run, "loss", 50)
                assert len(curve) <= 50 and (not count or curve[-1].step >= count)
                seen[run] = count
                looks += 0 < count < 10 * batches
            if looks > 3:
                gate.touch()
    for child in children:
        assert child.wait() == 0
        child.stdout.close()
    assert looks > 3
    with RunStore(path) as store:
        assert {one.name for one in store.runs()} == {"one", "two"}
        for run in (1, 2):
            steps = [one.step for one in store.readings(run, "loss")]
            assert steps == list(range(1, 10 * batches + 1))
    whole(path)


def test_threads_that_share_a_store_take_turns_and_lose_nothing(tmp_path):
    sys_interval = sys.getswitchinterval()
    failed = []
    with RunStore(tmp_path / "s", write=True) as store:

        def work():
            try:
                run = store.begin("mine", {})
                for step in range(1, 120):
                    store.write(run, step, [(0.0, Reading(step, "loss", 1.0 / step))], [], at=step)
                    assert len(store.overview(run, "loss")) == step
                store.end(run, "finished")
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        try:
            sys.setswitchinterval(1e-5)
            for one in threads:
                one.start()
            for one in threads:
                one.join()
        finally:
            sys.setswitchinterval(sys_interval)
        assert failed == []
        for run in (1, 2, 3):
            assert [one.step for one in store.readings(run, "loss")] == [*range(1, 120)]
            assert (store.run(run).outcome, store.run(run).about) == ("finished", {"at": 119})


def test_a_writer_waits_while_another_holds_the_store_and_training_does_not(tmp_path):
    path = tmp_path / "s"
    # The store is held for less than the five seconds that a writer waits.
    code = LIMITED.replace("MOST", "None").replace("sleep(0.5)", "sleep(0.15)")
    RunStore(path, write=True).close()
    db = sqlite3.connect(path, isolation_level=None)
    command = [sys.executable, "-c", code, str(path), "400"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "begun\n"
    db.execute("begin immediate")
    assert child.stdout.readline() == "trained\n"
    db.execute("rollback")
    db.close()
    assert child.stdout.read().split() == ["lost", "0"]
    assert child.wait() == 0
    child.stdout.close()
    with RunStore(path) as store:
        assert len(store.readings(1, "count")) == 400


# A file that must not grow is what a full disk or an exhausted quota is to SQLite.
LIMITED = """
import resource, sys, time, warnings, torch, thalweg
p = torch.nn.Parameter(torch.ones(1))
opt = torch.optim.SGD([p], lr=0.1)
said = []
warnings.showwarning = lambda message, *_: said.append(str(message))
warnings.simplefilter("always")
run = thalweg.watch(None, opt, budget=0, store=sys.argv[1], name="mine")
limit = MOST
if limit is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
print("begun", flush=True)
steps = int(sys.argv[2])
for step in range(1, steps + 1):
    run.log(count=float(step))
    opt.step()
    if step % (steps // 4) == 0:
        time.sleep(0.5)
assert run.step == steps
print("trained", flush=True)
if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.close()
print("lost", run.recorder.lost, *(one.replace("\\n", " ") for one in said), sep="\\n")
"""


def limited(path, limit, *more):
    code = LIMITED.replace("MOST", str(limit))
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), "8000", *more], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    begun, trained, lost, count, *said = done.stdout.splitlines()
    assert (begun, trained, lost) == ("begun", "trained", "lost")
    return int(count), said


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
def test_on_a_full_disk_training_goes_on_and_the_loss_of_readings_is_said(tmp_path):
    path = tmp_path / "s"
    lost, said = limited(path, 200_000)
    with RunStore(path) as store:
        steps = [one.step for one in store.readings(1, "count")]
    assert steps == list(range(1, len(steps) + 1))
    assert 0 < lost == 8000 - len(steps)
    assert f"{lost} readings and 0 findings could not be stored" in said[-1]
    whole(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no limit of file sizes there")
def test_what_a_full_disk_held_up_is_stored_once_there_is_room(tmp_path):
    path = tmp_path / "s"
    lost, said = limited(path, 200_000, "room")
    assert lost == 0 and len(said) >= 1 and "could not be stored" not in said[-1]
    with RunStore(path) as store:
        assert [one.value for one in store.readings(1, "count")] == [float(s) for s in range(1, 8001)]
    whole(path)


def test_a_run_that_cannot_even_begin_is_refused_before_training(tmp_path):
    path = tmp_path / "s"
    with RunStore(path, write=True) as store:
        (pages,) = store.db.execute("pragma page_count").fetchone()
        store.db.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(ValueError, match=f"{path}.*cannot be written.*full"):
            for _ in range(100):
                store.begin("x" * 1000, {})


def test_a_store_that_is_deleted_during_a_run_is_said_with_what_is_lost(small, tmp_path):
    folder = tmp_path / "runs"
    with pytest.warns(UserWarning) as caught:
        run = thalweg.watch(small.model, small.opt, budget=0, store=folder / "s")
        for step in range(20):
            run.log(loss=1.0)
            small.opt.step()
            if step == 9:
                run.recorder.flush()
                shutil.rmtree(folder)
        run.close()
    said = [str(one.message) for one in caught]
    assert len(said) == 2 and all("was deleted or moved during the run" in one for one in said)
    assert "10 readings and 0 findings could not be stored" in said[1]
    assert run.step == 20 and not folder.exists()


def test_a_store_that_is_moved_during_a_run_holds_all_that_was_stored_before(small, tmp_path):
    path, there = tmp_path / "s", tmp_path / "elsewhere"
    there.mkdir()
    with pytest.warns(UserWarning) as caught:
        run = thalweg.watch(small.model, small.opt, budget=0, store=path)
        for step in range(20):
            run.log(loss=1.0)
            small.opt.step()
            if step == 9:
                run.recorder.flush()
                path.rename(there / "s")
        run.close()
    said = [str(one.message) for one in caught]
    assert len(said) == 2 and "10 readings and 0 findings could not be stored" in said[1]
    whole(there / "s")
    with RunStore(there / "s") as store:
        assert [one.step for one in store.readings(run.id, "loss")] == [*range(1, 11)]


def test_another_store_in_the_place_of_a_deleted_one_is_left_alone(small, tmp_path):
    path = tmp_path / "s"
    with pytest.warns(UserWarning, match="was deleted or moved"):
        run = thalweg.watch(small.model, small.opt, budget=0, store=path)
        run.recorder.flush()
        for one in tmp_path.glob("s*"):
            one.unlink()
        with RunStore(path, write=True) as other:
            other.begin("another", {})
        run.log(loss=1.0)
        run.close()
    with RunStore(path) as store:
        assert [(one.name, one.outcome, store.names(one.id)) for one in store.runs()] == [
            ("another", None, [])
        ]


def test_a_script_may_go_to_another_folder_during_a_run(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with thalweg.watch(small.model, small.opt, budget=0, store="s") as run:
            monkeypatch.chdir(tmp_path / "elsewhere")
            run.log(loss=1.0)
            small.opt.step()
    with RunStore(tmp_path / "s") as store:
        assert store.run(run.id).steps == 1 and len(store.readings(run.id, "loss")) == 1


def test_who_makes_a_store_waits_for_another_who_makes_it_too(tmp_path):
    path = tmp_path / "s"
    first = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    first.execute("begin immediate")
    timer = threading.Timer(0.3, first.rollback)
    timer.start()
    began = time.monotonic()
    with RunStore(path, write=True) as store:
        assert store.begin("second", {}) == 1
    assert time.monotonic() - began > 0.2
    timer.join()
    first.execute("begin immediate")
    first.execute("rollback")
    first.close()


def test_who_makes_a_store_that_stays_locked_says_so(tmp_path):
    path = tmp_path / "s"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as first:
        first.execute("begin immediate")
        with pytest.raises(ValueError, match="cannot be written: database is locked"):
            RunStore(path, write=True, wait=0.1)
        first.execute("rollback")
