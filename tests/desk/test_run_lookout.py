"""However many watch, the store is looked at once; who does not listen is dropped; nobody watches nothing."""

from __future__ import annotations

import asyncio
import json
import os
import time

import pytest

from thalweg.desk.problems import Problems
from thalweg.desk.run_lookout import Lookout
from thalweg.desk.run_source import RunSource
from thalweg.desk.run_viewer import Cursor, ListViewer, RunViewer
from thalweg.watch import Finding, Reading, RunStore

LITTLE = 8


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path / "runs.sqlite", write=True) as store:
        store.begin("mine", {})
        yield store


@pytest.fixture
def lookout(store):
    return Lookout(RunSource(store.path, Problems(None)))


def put(store, step, *findings):
    store.write(1, step, [(0.0, Reading(step, "loss", float(step)))], findings)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def event(viewer, *kinds):
    """The next event of one of some kinds."""
    async for one in viewer.news():
        if one["event"] in kinds:
            return one


async def steps(viewer, last):
    """Steps that a viewer is told of, up to ``last``."""
    found = []
    async for one in viewer.news():
        if one["event"] == "readings":
            found += json.loads(one["data"])["loss"]["step"]
        if found and found[-1] == last:
            return found


def test_many_viewers_share_each_look_and_are_told_the_same(store, lookout):
    async def watch():
        viewers = [RunViewer(1, ["loss"], Cursor()) for _ in range(30)]
        for one in viewers:
            lookout.join(one)
        await until(lambda: all(one.cursor.row is not None for one in viewers))
        before, told = lookout.looks, [asyncio.create_task(steps(one, 10)) for one in viewers]
        for step in range(1, 11):
            put(store, step)
            await until(lambda step=step: all(one.cursor.row == step for one in viewers))
        found = await asyncio.gather(*told)
        # One look for each of ten writes, and some more if a write fell between two questions.
        assert lookout.looks - before < 30
        for one in viewers:
            lookout.leave(one)
        return found

    assert asyncio.run(watch()) == [list(range(1, 11))] * 30


def test_each_is_told_of_the_readings_that_it_shows(store, lookout):
    async def watch():
        one, other = RunViewer(1, ["loss"], Cursor(row=0)), RunViewer(1, ["accuracy"], Cursor(row=0))
        both = [Reading(1, "loss", 1.0), Reading(1, "accuracy", 0.5), Reading(1, "rest", 0.0)]
        store.write(1, 1, [(0.0, reading) for reading in both], [])
        for viewer in (one, other):
            lookout.join(viewer)
        found = [json.loads((await event(viewer, "readings"))["data"]) for viewer in (one, other)]
        for viewer in (one, other):
            lookout.leave(viewer)
        return [list(each) for each in found]

    assert asyncio.run(watch()) == [["loss"], ["accuracy"]]


def test_a_viewer_that_does_not_listen_is_dropped_and_holds_up_nobody(store, lookout, monkeypatch):
    monkeypatch.setattr("thalweg.desk.run_viewer.BEHIND", LITTLE)

    async def watch():
        deaf, keen = (RunViewer(1, ["loss"], Cursor()) for _ in range(2))
        lookout.join(deaf)
        lookout.join(keen)
        await until(lambda: keen.cursor.row is not None)
        told = asyncio.create_task(steps(keen, LITTLE + 5))
        for step in range(1, LITTLE + 6):
            put(store, step)
            await until(lambda step=step: keen.cursor.row == step)
        assert await told == list(range(1, LITTLE + 6))
        assert not deaf.there and deaf not in lookout.viewers() and keen in lookout.viewers()
        # What waited is let go of, and the answer that would have sent it ends.
        assert [one async for one in deaf.news()] == []
        lookout.leave(keen)

    asyncio.run(watch())


def test_the_thread_lives_as_long_as_somebody_watches(store, lookout):
    async def watch():
        for _ in range(3):
            viewer = RunViewer(1, [], Cursor())
            lookout.join(viewer)
            await anext(viewer.news())
            thread = lookout._thread
            assert thread is not None and thread.is_alive()
            lookout.leave(viewer)
            await asyncio.to_thread(thread.join)
            assert lookout._thread is None

    asyncio.run(watch())


def test_viewers_whose_loop_is_gone_are_forgotten(store, lookout):
    async def join():
        lookout.join(RunViewer(1, [], Cursor()))

    asyncio.run(join())
    while lookout._thread is not None:
        put(store, 1)
        time.sleep(0.02)
    assert lookout.viewers() == []


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_viewers_are_told_when_the_store_goes_or_is_another(store, lookout, tmp_path, how):
    async def watch():
        viewer = RunViewer(1, ["loss"], Cursor())
        lookout.join(viewer)
        news = viewer.news()
        assert (await anext(news))["event"] == "progress"
        if how == "removed":
            store.path.rename(tmp_path / "away")
            first = await anext(news)
            (tmp_path / "away").rename(store.path)
            second = await anext(news)
            assert [one["event"] for one in (first, second)] == ["trouble", "trouble"]
            assert "is gone" in first["data"] and json.loads(second["data"]) == {"why": ""}
        else:
            with RunStore(tmp_path / "other", write=True) as other:
                other.begin("other", {})
            # A writer that is still there would have its log put onto the new file.
            store.close()
            os.replace(tmp_path / "other", store.path)
            assert (await anext(news))["event"] == "anew"
        lookout.leave(viewer)

    asyncio.run(watch())


def test_a_cursor_that_lies_far_behind_starts_anew(store, lookout, monkeypatch):
    monkeypatch.setattr("thalweg.desk.run_viewer.FAR", 5)
    for step in range(1, 9):
        put(store, step)

    async def watch(row):
        viewer = RunViewer(1, ["loss"], Cursor(row=row))
        lookout.join(viewer)
        found = (await event(viewer, "anew", "readings"))["event"]
        lookout.leave(viewer)
        return found

    assert asyncio.run(watch(1)) == "anew" and asyncio.run(watch(4)) == "readings"


def test_a_run_that_falls_silent_is_told_though_nothing_is_written(store, lookout, monkeypatch):
    async def watch():
        of_run, of_list = RunViewer(1, [], Cursor()), ListViewer(time.time() - 3600)
        monkeypatch.setattr(ListViewer, "SELDOM", 0.0)
        for one in (of_run, of_list):
            lookout.join(one)
        assert "running" in (await anext(of_run.news()))["data"]
        assert "running" in (await anext(of_list.news()))["data"]
        monkeypatch.setattr("thalweg.desk.run_summary.QUIET", 0.0)
        for one in (of_run, of_list):
            assert "not heard of any more" in (await anext(one.news()))["data"]
            lookout.leave(one)

    asyncio.run(watch())


def test_findings_are_counted_on_from_where_a_viewer_was(store, lookout):
    put(store, 1, *(Finding(f"finding {number}", 1, "", {}) for number in range(1, 5)))
    store.end(1, "finished")

    async def watch():
        viewer = RunViewer(1, [], Cursor(findings=2))
        lookout.join(viewer)
        return [(one["id"].split(".")[0], json.loads(one["data"])) async for one in viewer.news()]

    found = [
        (cursor, data["number"], data["name"]) for cursor, data in asyncio.run(watch()) if "number" in data
    ]
    assert found == [("3", 3, "finding 3"), ("4", 4, "finding 4")]


@pytest.mark.parametrize("count", [1, 200])
def test_who_begins_is_told_of_every_finding_however_many_there_are(store, lookout, count):
    put(store, 1, *(Finding(f"finding {number}", 1, "", {}) for number in range(1, count + 1)))
    store.end(1, "finished")

    async def watch():
        viewer = RunViewer(1, ["loss"], Cursor())
        lookout.join(viewer)
        return [json.loads(one["data"]) async for one in viewer.news() if one["event"] == "finding"]

    assert [one["number"] for one in asyncio.run(watch())] == list(range(1, count + 1))


@pytest.mark.parametrize(("known", "first"), [(0, 2001), (1500, 2001), (2990, 2991)])
def test_who_begins_at_thousands_of_findings_is_told_of_the_latest_thousand(store, lookout, known, first):
    put(store, 1, *(Finding(f"finding {number}", 1, "", {}) for number in range(1, 3001)))
    store.end(1, "finished")

    async def watch():
        viewer = RunViewer(1, ["loss"], Cursor(findings=known))
        lookout.join(viewer)
        return [one async for one in viewer.news() if one["event"] == "finding"]

    told = asyncio.run(watch())
    numbers = list(range(first, 3001))
    assert [json.loads(one["data"])["number"] for one in told] == numbers
    assert [json.loads(one["data"])["name"] for one in told] == [f"finding {number}" for number in numbers]
    assert [int(one["id"].split(".")[0]) for one in told] == numbers


@pytest.mark.parametrize(("more", "expected"), [(40, "finding"), (70, "anew")])
def test_a_page_that_comes_back_to_findings_it_missed_gets_them_or_is_made_anew(
    store, lookout, more, expected
):
    put(store, 1, Finding("before", 1, "", {}))
    put(store, 2, *(Finding("missed", 2, "", {}) for _ in range(more)))

    async def watch():
        viewer = RunViewer(1, ["loss"], Cursor(findings=1, row=1))
        lookout.join(viewer)
        found = await asyncio.wait_for(event(viewer, "finding", "anew"), 20)
        lookout.leave(viewer)
        return found

    assert asyncio.run(watch())["event"] == expected


def test_the_list_is_told_of_a_hundred_runs_at_once(store, lookout):
    ids = [store.begin(f"run {number}", {}) for number in range(100)]

    async def watch():
        viewer, found = ListViewer(0.0), []
        lookout.join(viewer)
        async for one in viewer.news():
            found.append(json.loads(one["data"])["id"])
            if len(found) == len(ids) + 1:
                lookout.leave(viewer)
                return found, viewer.there

    found, there = asyncio.run(asyncio.wait_for(watch(), 60))
    assert sorted(found) == [1, *ids] and there


def test_a_run_whose_clock_was_ahead_hides_no_other_from_the_list(store, lookout):
    now = time.time()
    ahead = store.begin("ahead", {})
    store.db.execute(
        "update runs set seen = ?, ended = ?, outcome = 'x' where id = ?", (now + 9e5, now + 9e5, ahead)
    )

    async def watch():
        viewer, found = ListViewer(now + 9e5), []
        lookout.join(viewer)
        async for one in viewer.news():
            row = json.loads(one["data"])
            found.append((row["id"], row["steps"]))
            if row["id"] == 1:
                if row["steps"] == 7:
                    lookout.leave(viewer)
                    return found
                put(store, 7)

    found = asyncio.run(asyncio.wait_for(watch(), 60))
    assert found.count((1, 7)) == 1 and found.count((ahead, 0)) == 1


def test_a_cursor_is_what_it_was_written_as_and_nonsense_is_none():
    for one in (Cursor(), Cursor(3, 77, "ab-1"), Cursor(0, 0, "x")):
        assert Cursor.parse(str(one)) == one
    assert Cursor.parse("5") == Cursor(5) and Cursor.parse("x.y.z").findings == 0
    assert Cursor.parse("9" * 99) == Cursor() and Cursor.parse("-3.-4") == Cursor()
