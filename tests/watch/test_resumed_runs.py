"""An interrupted run goes on: one run in the store, its steps counted on, its findings not made twice."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings

import pytest
import torch

import thalweg
from thalweg.watch import RunStore

GENEROUS = 1e9


def attempt(small, path, steps, losses=None, **options):
    options = {"budget": GENEROUS, "store": path, "name": "mine", **options}
    with thalweg.watch(small.model, small.opt, **options) as run:
        for _ in range(steps):
            loss = small.loss_fn(small.model, small.whole)
            loss.backward()
            run.log(loss=loss if losses is None else losses[run.step])
            small.opt.step()
            small.opt.zero_grad()
    return run


def read(path, run=1):
    with RunStore(path) as store:
        return store.runs(), {name: store.readings(run, name) for name in store.names(run)}


@pytest.mark.parametrize("resume", [True, "mine", 1])
def test_step_numbers_go_on_in_one_run(small, tmp_path, resume):
    path = tmp_path / "s"
    first = attempt(small, path, 20)
    second = attempt(small, path, 15, resume=resume, name="mine" if resume is True else None)
    (info,), readings = read(path)
    assert (first.id, second.id, second.step) == (1, 1, 35)
    assert (info.name, info.steps, info.outcome) == ("mine", 35, "finished") and info.ended is not None
    assert info.about["resumed"] == [20]
    assert [one.step for one in readings["loss"]] == list(range(1, 36))
    # In the first step of each attempt the duration of a step is not known.
    assert [one.step for one in readings["gradient norm"]] == [*range(2, 21), *range(22, 36)]


def test_with_the_checkpoint_of_an_earlier_step_the_optimizer_says_where_to_go_on(small, tmp_path):
    path = tmp_path / "s"
    attempt(small, path, 20)
    for index, one in enumerate((small.model, small.opt)):
        torch.save(one.state_dict(), tmp_path / f"{index}")
    before = read(path)[1]["loss"]
    attempt(small, path, 14, resume=True)  # dies behind its last checkpoint
    for index, one in enumerate((small.model, small.opt)):
        one.load_state_dict(torch.load(tmp_path / f"{index}"))
    assert small.opt.state[small.model[0].weight]["step"] == 20
    run = attempt(small, path, 10, resume=True)
    assert run.step == 30
    (info,), readings = read(path)
    assert info.steps == 30 and info.about["resumed"] == [20, 20]
    assert [one.step for one in readings["loss"]] == list(range(1, 31))
    assert readings["loss"][:20] == before


def test_start_says_it_outright(small, tmp_path):
    path = tmp_path / "s"
    attempt(small, path, 20)
    run = attempt(small, path, 5, resume=True, start=10)
    assert run.step == 15
    assert [one.step for one in read(path)[1]["loss"]] == list(range(1, 16))
    assert attempt(small, path, 5, name="fine-tuning", start=1000).step == 1005
    assert [one.step for one in read(path, 2)[1]["loss"]] == list(range(1001, 1006))


def test_an_optimizer_that_keeps_no_count_goes_on_behind_the_last_step_stored(small, tmp_path):
    small.opt = torch.optim.SGD(small.model.parameters(), lr=0.1)
    attempt(small, tmp_path / "s", 20)
    assert attempt(small, tmp_path / "s", 5, resume=True).step == 25


def test_the_first_of_its_name_begins_anew_and_the_latest_is_resumed(small, tmp_path):
    path = tmp_path / "s"
    assert attempt(small, path, 3, resume=True).id == 1
    assert attempt(small, path, 3, name="other").id == 2
    assert attempt(small, path, 3).id == 3
    assert attempt(small, path, 3, resume=True).id == 3
    assert [info.name for info in read(path)[0]] == ["mine", "other", "mine"]


def test_rules_remember_and_findings_are_made_once(small, tmp_path):
    path = tmp_path / "s"
    losses = [1.0] * 10 + [float("inf")] * 30
    first = attempt(small, path, 20, losses)
    assert [(one.name, one.step) for one in first.findings] == [("not finite", 11)]
    second = attempt(small, path, 20, losses, resume=True)
    assert second.findings == first.findings
    with RunStore(path) as store:
        assert len(store.findings(1)) == 1
    # What was found behind the step from which the run goes on is found again.
    third = attempt(small, path, 20, losses, resume=True, start=5)
    assert [(one.name, one.step) for one in third.findings] == [("not finite", 11)]
    with RunStore(path) as store:
        assert len(store.findings(1)) == 1


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("update findings set finding = '{'", "row 1 of the findings of run 1 cannot be read"),
        ("update runs set about = '['", None),
        ("update runs set about = '[]'", None),
    ],
)
def test_damaged_rows_do_not_keep_a_run_from_going_on(small, tmp_path, damage, told):
    path = tmp_path / "s"
    attempt(small, path, 20, [1.0] * 10 + [float("inf")] * 30)
    with sqlite3.connect(path) as db:
        db.execute(damage)
    db.close()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert attempt(small, path, 20, resume=True).id == 1
    said = [str(one.message) for one in caught if "thalweg" in str(one.message)]
    assert said == [] if told is None else len(said) == 1 and told in said[0]
    info, losses = read(path)[0][0], [one.step for one in read(path)[1]["loss"]]
    assert (info.outcome, info.steps, info.about["resumed"]) == ("finished", 40, [20])
    assert losses == [*range(1, 41)]


@pytest.mark.parametrize("table", ["runs", "findings"])
def test_a_damaged_file_is_refused_in_words_before_training(small, tmp_path, table):
    path = tmp_path / "s"
    attempt(small, path, 20, [1.0] * 10 + [float("inf")] * 30)
    with sqlite3.connect(path) as db:
        db.execute("pragma wal_checkpoint(truncate)")
        (page,) = db.execute("select rootpage from sqlite_master where name = ?", (table,)).fetchone()
        (size,) = db.execute("pragma page_size").fetchone()
    db.close()
    with open(path, "r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"store '.*' cannot be (read|written): .*malformed"):
        attempt(small, path, 20, resume=True)
    assert path.read_bytes() == before and not small.opt._optimizer_step_pre_hooks


def test_a_rule_that_needs_a_history_has_it_at_once(small, tmp_path):
    """A spike in the second step after a resumption is told by the median of the steps before."""
    path = tmp_path / "s"
    attempt(small, path, 40)
    with thalweg.watch(small.model, small.opt, budget=GENEROUS, store=path, name="mine", resume=True) as run:
        for step in range(3):
            loss = small.loss_fn(small.model, small.whole)
            (loss * (1e4 if step == 1 else 1)).backward()
            small.opt.step()
            small.opt.zero_grad()
    assert [(one.name, one.step) for one in run.findings] == [("gradient spike", 42)]


CHILD = """
import sys, time, torch, thalweg
p = torch.nn.Parameter(torch.ones(1))
opt = torch.optim.SGD([p], lr=0.1)
with thalweg.watch(None, opt, budget=0, store=sys.argv[1], name="job", resume=True) as run:
    print(run.step, flush=True)
    while True:
        run.log(loss=float(run.step + 1))
        opt.step()
        time.sleep(0.001)
"""


def test_a_job_that_is_killed_and_started_again_with_the_same_command_goes_on(tmp_path):
    path, begun = tmp_path / "s", []
    for _ in range(2):
        command = [sys.executable, "-c", CHILD, str(path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        begun.append(int(child.stdout.readline()))
        wait_for(path, more_than=begun[-1] + 100)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        child.stdout.close()
    (info,), readings = read(path)
    assert begun[0] == 0 and begun[1] >= 100
    assert info.outcome is None and info.steps > begun[1] + 100
    losses = readings["loss"]
    assert [one.step for one in losses] == list(range(1, len(losses) + 1))
    assert [one.value for one in losses] == [float(one.step) for one in losses]


def wait_for(path, more_than):
    deadline = time.time() + 240
    while time.time() < deadline:
        if path.exists():
            with RunStore(path) as store:
                if store.runs() and store.runs()[0].steps > more_than:
                    return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not get to step {more_than} in four minutes")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resume": "yours"}, "resume must be the id or name of a run in .*, got 'yours'; .* 1 'mine'"),
        ({"resume": 7}, "resume must be .*, got 7"),
        ({"resume": True, "name": None}, "resume=True needs the name of the run"),
        ({"resume": True, "store": None}, "resume=True needs a store"),
        ({"start": -1}, "start must be a whole number of steps, at least 0, got -1"),
    ],
)
def test_what_cannot_be_resumed_is_refused_and_the_store_left_alone(small, tmp_path, options, words):
    path = tmp_path / "s"
    attempt(small, path, 3)
    before = read(path)
    with pytest.raises(ValueError, match=words):
        thalweg.watch(small.model, small.opt, **{"store": path, "name": "mine", **options})
    assert read(path) == before and not small.model._forward_hooks
