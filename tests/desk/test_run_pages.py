"""The list of runs, the page of a run, comparison and phases, over a store with a story."""

from __future__ import annotations

import html
import math
import random
import re
import time

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.run_summary import seldom
from thalweg.watch import Finding, Reading, Remedy, RunStore
from thalweg.watch.latent_phases import phases_of_run
from thalweg.watch.run_info import RunInfo

ATTACK = '<img src=x onerror="alert(1)">\u202e{{ 7*7 }}'
REMEDY = Remedy("clip it", "clip_gradients(opt, 1)", "gradient-clipping")
ABOUT = {"optimizer": "SGD", "model": "MLP", "lr": 0.1, "budget": 0.03}


def write(store, name, about, outcome, value, steps=400, findings=()):
    run = store.begin(name, about)
    source = random.Random(name)
    rows = []
    for step in range(1, steps + 1):
        rows.append((0.0, Reading(step, "loss", value(step) + 0.01 * source.random())))
        if step % 2:
            rows.append((0.0, Reading(step, "gradient norm", 1.0 + source.random(), {"a": 1.0, "b": 2.0})))
    store.write(run, steps, rows, findings)
    if outcome:
        store.end(
            run, outcome, watching=0.021, left_out={"sharpness": "ran every 90 steps rather than every 20"}
        )
    return run


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "runs.sqlite"
    with RunStore(path, write=True) as store:
        spike = Finding(
            "loss spike", 100, "It spikes.", {"times": math.inf}, "critical", ("a",), (), (REMEDY,)
        )
        write(store, "steps", ABOUT, "finished", lambda step: 3.0 if step < 200 else 1.0, 400, (spike, spike))
        write(store, ATTACK, {**ABOUT, "lr": 0.2}, "ValueError", lambda step: 1.0 / step)
        write(store, "short", ABOUT, None, lambda step: 1.0, steps=5)
        silent = write(store, "silent", ABOUT, None, lambda step: 2.0, steps=30)
        store.db.execute("update runs set seen = ? where id = ?", (time.time() - 3600, silent))
    return path


@pytest.fixture(scope="module")
def client(path):
    return TestClient(create_app(path), raise_server_exceptions=False)


def rows(text):
    return [int(one) for one in re.findall(r'<tr id="run-(\d+)"', text)]


def test_the_list_is_newest_first_with_state_steps_and_findings(client):
    text = client.get("/runs").text
    assert rows(text) == [4, 3, 2, 1]
    for words in ("finished", "ValueError", "running", "not heard of any more"):
        assert f">{words}</span>" in text
    first = text[text.index('id="run-1"') :]
    assert '<td class="number">400</td>\n<td class="number">2</td>' in first and "<polyline" in first


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("q=STEP", [1]),
        ("q=s", [4, 3, 2, 1]),
        ("state=running", [3]),
        ("state=not+heard+of+any+more", [4]),
        ("state=ended+by+an+error", [2]),
        ("state=finished&q=short", []),
        ("before=3", [2, 1]),
    ],
)
def test_the_list_is_filtered(client, query, wanted):
    answer = client.get(f"/runs?{query}")
    assert rows(answer.text) == wanted and answer.status_code == 200
    assert wanted or "No run fits" in answer.text


def test_a_state_that_is_none_is_refused(client):
    assert client.get("/runs?state=asleep").status_code == 400


def test_a_long_list_comes_in_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.desk.run_pages.PAGE", 3)
    with RunStore(tmp_path / "s", write=True) as store:
        for number in range(7):
            store.end(store.begin(f"run {number}", {}), "finished")
    client, seen, address = TestClient(create_app(tmp_path / "s")), [], "/runs"
    while address:
        text = client.get(address).text
        seen += rows(text)
        older = re.search(r'rel="next" href="([^"]+)"', text)
        address = older and html.unescape(older[1])
    assert seen == [7, 6, 5, 4, 3, 2, 1]


def test_names_and_settings_are_text(client):
    for place in ("/runs", "/runs/2", "/runs/compare?run=1&run=2"):
        text = client.get(place).text
        assert "<img src=x" not in text and "&lt;img src=x" in text and "{{ 7*7 }}" in text
    assert "style=" not in client.get("/runs/1").text and "onclick" not in client.get("/runs/1").text


def test_a_page_shows_what_was_asked_for_and_no_more_than_six(client):
    def shown(query):
        return re.findall(r'<figure class="panel" data-name="([^"]+)"', client.get(f"/runs/1{query}").text)

    assert shown("") == ["loss", "gradient norm"]
    assert shown("?show=gradient+norm,loss") == ["gradient norm", "loss"]
    assert shown("?show=loss&show=loss") == ["loss"] and shown("?show=nonsense") == ["loss", "gradient norm"]


def test_a_reading_whose_name_holds_a_comma_can_be_shown(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("x", {})
        store.write(run, 1, [(0.0, Reading(1, name, 1.0)) for name in ("a,b", "a", *"cdefgh")], [])
    client = TestClient(create_app(tmp_path / "s"))
    text = client.get("/runs/1", params={"show": ["a,b", "a"]}).text
    assert re.findall(r'<figure class="panel" data-name="([^"]+)"', text) == ["a,b", "a"]
    text = client.get("/runs/1", params={"show": "a,c,d,e,f,g,h"}).text
    assert len(re.findall(r'<figure class="panel" data-name="[^"]', text)) == 6


def test_overhead_budget_and_what_was_left_out_are_said(client):
    text = client.get("/runs/1").text
    assert "2.1% of the training time, of 3% allowed" in text
    assert "ran every 90 steps rather than every 20" in text
    assert "not known yet" in client.get("/runs/3").text


@pytest.mark.parametrize(
    ("left_out", "clause"),
    [
        ({}, ""),
        (
            {"loss": "judged every 7 steps rather than every 1; all are stored"},
            "the loss was judged every 7 steps",
        ),
        ({"a": "never ran", "b": "ran every 9 steps"}, "2 readings came seldom or never"),
        (
            {"loss": "judged every 2 steps rather than every 1", "a": "never ran"},
            "the loss was judged every 2 steps and 1 reading came seldom or never",
        ),
    ],
)
def test_what_was_seen_seldom_is_a_clause(left_out, clause):
    assert seldom(RunInfo(1, "", 0.0, 0.0, None, None, 1, {"left_out": left_out})) == clause


def test_only_a_run_that_goes_on_has_found_nothing_so_far(client):
    ended, running = (client.get(f"/runs/{run}").text for run in (2, 3))
    assert 'Nothing was found<span id="so-far"></span>. But 1 reading came seldom or never.' in ended
    assert 'Nothing was found<span id="so-far"> so far</span>. What' in running


def test_a_finding_by_itself_is_the_same_as_on_its_page(client):
    text = client.get("/runs/1").text
    for number in (1, 2):
        fragment = client.get(f"/runs/1/findings/{number}").text
        assert fragment.strip() in text and "clip_gradients(opt, 1)" in fragment
    assert text.count('class="remedy" open') == 1
    for wrong in (0, 3, 10**30):
        assert client.get(f"/runs/1/findings/{wrong}").status_code == 404
    assert client.get("/api/runs/1/findings?after=1").json() == client.get("/api/runs/1/findings").json()[1:]


def test_a_finding_names_each_of_its_papers_once_and_few_of_many_layers(tmp_path):
    layers = tuple(f"layer {number}." for number in range(200))
    with RunStore(tmp_path / "s", write=True) as store:
        run = store.begin("x", {})
        one = Finding("spike", 1, "", {}, "info", layers, ("gradient-clipping", "spam"), (REMEDY,))
        store.write(run, 1, [], [one])
    text = TestClient(create_app(tmp_path / "s")).get("/runs/1").text
    assert text.count('href="/papers/gradient-clipping"') == 1 and text.count('href="/papers/spam"') == 1
    assert "layer 29. and 170 more" in text and "layer 30." not in text


def test_runs_beside_each_other_differ_in_what_differs(client):
    text = client.get("/runs/compare?run=1&run=2&reading=loss").text
    assert text.count("<tr data-run=") == 2 and "line-0" in text and "line-1" in text
    settings = text[text.index("Settings that differ") :]
    assert '<th scope="row">lr</th><td>0.1</td><td>0.2</td>' in settings
    assert "model" not in re.findall(r'<th scope="row">([a-z]+)</th>', settings)
    with RunStore(client.app.state.store) as store:
        last = store.readings(1, "loss")[-1].value
        least = min(one.value for one in store.readings(2, "loss"))
    assert f"{last:.4g}" in text and f"{least:.4g}" in text


def test_a_comparison_of_none_of_too_many_and_of_strangers(client):
    assert "No run was chosen" in client.get("/runs/compare").text
    many = "&".join(f"run={one}" for one in range(1, 8))
    assert client.get(f"/runs/compare?{many}").status_code == 400
    assert client.get("/runs/compare?run=1&run=99").status_code == 404
    assert client.get("/runs/compare?run=1&reading=nothing").status_code == 400
    assert client.get("/runs/compare?run=1&run=1").text.count("<tr data-run=") == 1


def test_phases_part_where_the_run_changes(path, client):
    with RunStore(path) as store:
        found = phases_of_run(store, 1)
    assert found.phases[0].first == 1 and "loss" in found.readings
    # The loss falls by a factor of three at step 200.
    assert min(abs(one.first - 200) for one in found.phases[1:]) <= 8
    for one, other in zip(found.phases, found.phases[1:], strict=False):
        assert one.last == other.first and one.state != other.state
    for one in found.transitions:
        assert len(one.steps) == sum(
            (a.state, a.last) in {(one.source, step) for step in one.steps} for a in found.phases[:-1]
        )
    text = client.get("/runs/1/phases").text
    bands = re.search(r'data-bands="([^"]+)"', text)[1].split(";")
    assert [tuple(map(int, one.split(","))) for one in bands] == [
        (one.state, one.first, one.last) for one in found.phases
    ]
    assert client.get("/runs/1/phases").text == text


def test_a_run_too_short_for_phases_says_what_is_missing(client):
    text = client.get("/runs/3/phases").text
    assert "No phases yet" in text and "at least 24 finite readings" in text and "are 5" in text


def test_a_run_without_readings_says_what_to_do(tmp_path):
    with RunStore(tmp_path / "s", write=True) as store:
        store.begin("empty", {})
    client = TestClient(create_app(tmp_path / "s"))
    text = client.get("/runs/1").text
    assert 'id="no-readings">No readings yet' in text and 'data-name="loss"' in text
    assert client.get("/runs/compare?run=1").status_code == 200
    assert client.get("/runs/1/phases").status_code == 200


def test_of_compared_runs_one_that_is_not_finite_any_more_does_not_show_an_earlier_number_as_its_last(
    tmp_path,
):
    nan = float("nan")
    with RunStore(tmp_path / "s", write=True) as store:
        for values in ([3.0, nan, 1.25], [3.0, 1.25, nan], [nan, nan]):
            run = store.begin("x", {})
            store.write(run, 3, [(0.0, Reading(n, "loss", one)) for n, one in enumerate(values, 1)], [])
    text = TestClient(create_app(tmp_path / "s")).get("/runs/compare?run=1&run=2&run=3&reading=loss").text
    cells = [re.findall(r'<td class="number">(.*?)</td>', row)[1:] for row in text.split("<tr data-run=")[1:]]
    assert [last for last, _ in cells] == ["1.25", "not finite", "not finite"]
    assert cells[1][1].startswith("1.25 ") and cells[2][1] == ""
