"""A process trains, a server tells: events in order behind a cursor, over real sockets."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys

import httpx
import pytest

from thalweg.watch import Finding, Reading, RunStore

SERVE = """
import socket, sys, uvicorn
from thalweg.desk import run_events, run_summary, run_viewer
from thalweg.desk.app import create_app
run_events.HEARTBEAT = 0.2
# A machine that stands still for a minute changes nothing.
run_events.PATIENCE, run_summary.QUIET, run_viewer.POINTS, run_viewer.FAR = 600.0, 1e9, 10**9, 10**9
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
print(listening.getsockname()[1], flush=True)
site = create_app(sys.argv[1])
uvicorn.Server(uvicorn.Config(site, log_level="warning")).run(sockets=[listening])
"""
TRAIN = """
import itertools, sys, time, torch
from pathlib import Path
from torch import nn
import thalweg
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
opt = torch.optim.SGD(model.parameters(), lr=0.01)
stop = Path(sys.argv[2])
with thalweg.watch(model, opt, store=sys.argv[1], name="trained elsewhere") as run:
    last = None
    for step in itertools.count(1):
        if last is None and stop.exists():
            last = step + 20
        x = torch.randn(8, 4)
        loss = model(x).square().mean()
        loss.backward()
        run.log(loss=loss if last is None else float("nan"))
        opt.step()
        opt.zero_grad()
        if step == last:
            break
        time.sleep(0.005)
"""


@contextlib.contextmanager
def served(path):
    """The address of a desk in a process of its own, and the process."""
    command = [sys.executable, "-c", SERVE, str(path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield f"http://127.0.0.1:{int(server.stdout.readline())}", server
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """The address of a desk and the path of its store, to which each test adds runs of its own."""
    path = tmp_path_factory.mktemp("desk") / "runs.sqlite"
    with served(path) as (address, _):
        yield address, path


def get(address):
    return httpx.get(address, timeout=None)


def events(address, cursor=None, **about):
    """Events of a stream, each as its id, kind and data; a heartbeat is one of kind ``""``."""
    headers = {} if cursor is None else {"Last-Event-ID": cursor}
    with httpx.stream("GET", address, params=about, headers=headers, timeout=None) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = {}
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if line:
                found[name] = value
            elif found:
                yield found.get("id"), found.get("event", ""), json.loads(found.get("data", "null"))
                found = {}


def test_events_of_a_run_that_trains_come_in_order_and_go_on_behind_a_cursor(tmp_path):
    path, stop = tmp_path / "runs.sqlite", tmp_path / "stop"
    with served(path) as (address, _):
        assert get(f"{address}/api/runs").json() == []
        waiting = events(f"{address}/api/runs/events")
        assert next(waiting)[1] == ""
        training = subprocess.Popen([sys.executable, "-c", TRAIN, str(path), str(stop)])
        # Who waits for the first run is told of it.
        first = next(data for _, kind, data in waiting if kind == "run")
        assert first["name"] == "trained elsewhere" and first["state"] == "running"
        stream = f"{address}/api/runs/{first['id']}/events"
        cursor, points, findings, progress, connections = "0.0.", [], [], [], 0
        while not progress or progress[-1]["state"] == "running":
            connections += 1
            for number, (last, kind, data) in enumerate(events(stream, cursor, show="loss")):
                cursor = last or cursor
                if kind == "readings":
                    points += zip(data["loss"]["step"], data["loss"]["value"], strict=True)
                elif kind == "finding":
                    findings.append(data)
                elif kind == "progress":
                    progress.append(data)
                # Connections break at any place: in turn after one, two and three events.
                if connections < 9 and number >= connections % 3:
                    break
                # The run trains until it has been seen from nine connections.
                if connections == 9 and len(progress) > 2:
                    stop.touch()
        assert training.wait() == 0 and connections == 9
    with RunStore(path) as store:
        stored = [(one.step, one.value if one.finite else None) for one in store.readings(1, "loss")]
        told = store.findings(1)
    # Nothing twice, nothing missing, nothing out of order.
    assert points == stored and points[-1][1] is None
    assert [step for step, _ in points] == list(range(1, len(points) + 1))
    assert [one["number"] for one in findings] == list(range(1, len(told) + 1))
    assert [one["name"] for one in findings] == [one.name for one in told] and "not finite" in str(told)
    steps = [one["steps"] for one in progress]
    assert steps == sorted(steps)
    assert progress[-1] == {**progress[-1], "steps": len(points), "state": "finished"}
    assert "of the training time, of 3% allowed" in progress[-1]["overhead"]


def begun(path, name="by hand"):
    store = RunStore(path, write=True)
    return store, store.begin(name, {})


def test_a_stream_beats_while_nothing_happens_and_starts_anew_when_the_run_is_resumed(desk):
    address, path = desk
    store, run = begun(path)
    with store:
        store.write(run, 5, [(0.0, Reading(step, "loss", 1.0)) for step in range(1, 6)], [])
        stream = events(f"{address}/api/runs/{run}/events", "0.0.", show="loss")
        said = (one for one in stream if one[1])  # before the first look it may beat as well
        kinds = [next(said) for _ in range(3)]
        assert [kind for _, kind, _ in kinds] == ["readings", "names", "progress"]
        assert next(stream)[1] == ""
        assert kinds[1][2] == [{"name": "loss", "unit": "loss", "layers": False}]
        cursor = kinds[2][0]
        store.resume(run, 3)
        _, kind, data = next(said)
        assert kind == "anew" and data == {"why": "resumed"}
        # What the old cursor counted is void for everybody who comes back with it.
        back = events(f"{address}/api/runs/{run}/events", cursor)
        assert next(kind for _, kind, _ in back if kind) == "anew"
        store.end(run, "finished")


def test_the_list_is_told_of_runs_that_are_new_or_change_and_of_no_others(desk):
    address, path = desk
    quiet, other = begun(path, "quiet")
    quiet.close()
    mark = max(one["ended"] or one["started"] for one in get(f"{address}/api/runs").json())
    stream = events(f"{address}/api/runs/events", str(mark))
    store, run = begun(path, "<i>new</i>")
    with store:
        mine = next(data for _, kind, data in stream if kind == "run" and data["id"] == run)
        assert mine["kind"] == "running" and "&lt;i&gt;new" in mine["html"] and "<i>new" not in mine["html"]
        store.write(run, 8, [], [Finding("x", 1, "", {})])
        later = next(data for _, kind, data in stream if kind == "run")
        assert later["id"] == run and ">8</td>" in later["html"] and ">1</td>" in later["html"]
        store.end(run, "finished")
        last = next(data for _, kind, data in stream if kind == "run")
        assert (last["id"], last["state"]) == (run, "finished")
    with RunStore(path, write=True) as store:
        store.end(other, "finished")


def test_what_is_not_there_is_an_error_and_no_stream(desk):
    address, path = desk
    store, run = begun(path)
    store.close()
    assert get(f"{address}/api/runs/9999/events").status_code == 404
    for cursor in ("", "x", "1.2", "9" * 60, "-1.-1.-1", "\u00e9.1.2"):
        with httpx.stream(
            "GET", f"{address}/api/runs/{run}/events", params={"after": cursor}, timeout=None
        ) as answer:
            assert answer.status_code == 200, cursor


def test_streams_end_when_the_server_is_asked_to(tmp_path):
    path = tmp_path / "runs.sqlite"
    store, run = begun(path)
    with store, served(path) as (address, server):
        open_ones = [events(f"{address}/api/runs/{run}/events"), events(f"{address}/api/runs/events")]
        for one in open_ones:
            next(one)
        server.send_signal(signal.SIGTERM)
        for one in open_ones:
            # Cut off or ended: either way nobody waits for more.
            with contextlib.suppress(httpx.RemoteProtocolError):
                assert {kind for _, kind, _ in one} <= {"", "progress", "run"}
        assert server.wait() in (0, -signal.SIGTERM)
