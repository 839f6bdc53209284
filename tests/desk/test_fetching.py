"""Fetching from arXiv: polite, patient, whole pages only, never confused by an interruption."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import arxiv
import pytest
import requests

import thalweg.desk.manners as manners
from arxiv_stub import arxiv_stub, made_up
from thalweg.desk.arxiv_source import ArxivSource, Query
from thalweg.desk.database import Database
from thalweg.desk.fetching import Fetcher, fetches
from thalweg.desk.library import Library
from thalweg.desk.problems import Problems


class Desk:
    """A library in a folder, and what fetches into it."""

    def __init__(self, folder, stub, *, page=10, delay=0.001, tries=4):
        self.stub = stub
        self.library = Library(Database(folder))
        self.problems = Problems(self.library.database)
        self.client = manners.polite_client(api=stub.api, delay=delay, tries=tries, page=page)
        self.fetcher = Fetcher(
            self.library, ArxivSource(self.client), problems=self.problems, feed=f"{stub.address}/atom"
        )

    def ids(self):
        return [self.library.by_rowid([one.row])[0].arxiv for one in self.library.stream()]

    def starts(self):
        return [int(one["start"]) for one in self.stub.asked]


def test_one_request_in_three_seconds_is_the_default_and_is_kept(monkeypatch):
    client = manners.polite_client()
    assert client.delay_seconds == 3.0
    assert client.query_url_format.startswith("https://export.arxiv.org/api/query?")
    adapter = client._session.get_adapter("https://export.arxiv.org/")
    assert adapter.delay == 3.0
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)

    class Still(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 30, tzinfo=tz)

    monkeypatch.setattr(arxiv, "datetime", Still)
    with arxiv_stub(made_up(25)) as stub:
        client = manners.polite_client(api=stub.api, page=10)
        pages = list(ArxivSource(client).pages(Query("spikes")))
    assert [len(one.papers) for one in pages] == [10, 10, 5]
    assert [wait for wait in waits if wait > 1.0] == [3.0] * (len(stub.asked) - 1) == [3.0, 3.0]


def test_papers_are_fetched_with_what_arxiv_says_of_them(tmp_path):
    papers = made_up(23)
    papers[0] = replace(
        papers[0], comment="Code: https://github.com/a/b.", version=3, updated="2026-11-25T00:00:00Z"
    )
    with arxiv_stub(papers) as stub:
        desk = Desk(tmp_path, stub)
        outcome = desk.fetcher.fetch("gradient spikes", since="2026-11-01")
    assert outcome.added == (23, 0, 0)
    assert desk.ids() == [one.id for one in papers]
    found = desk.library.by_id(papers[0].id)
    assert found.title == papers[0].title, "markup in a title is text"
    assert (found.authors, found.organisation) == (("Ada Arden", "Ben Brook"), "University of Nowhere")
    assert (found.date, found.repository) == ("2026-11-20", "https://github.com/a/b")
    assert found.link == f"https://arxiv.org/abs/{papers[0].id}"
    assert "gradient spikes" in found.topics and found.automatic
    assert desk.problems.all() == []


CLASSES = ("68T07", "90C26, 68T05", "I.2.6; I.2.7", "F.2.2")


def test_classes_of_msc_and_acm_and_endless_names_cost_no_paper(tmp_path):
    papers = [replace(one, category=odd) for one, odd in zip(made_up(4), CLASSES, strict=True)]
    papers[0] = replace(papers[0], author="A collaboration " * 20, institute="A department of " * 20)
    with arxiv_stub(papers) as stub:
        desk = Desk(tmp_path, stub)
        assert desk.fetcher.fetch("gradient spikes").added == (4, 0, 0)
    assert desk.problems.all() == []
    rows = desk.library.database.rows("SELECT categories, organisation FROM imported ORDER BY published DESC")
    assert {row["categories"] for row in rows} == {'["cs.LG"]'}
    assert len(rows[0]["organisation"]) == 200


@pytest.mark.parametrize(
    ("said", "repository"),
    [
        ("Code: https://github.com/ggerganov/llama.cpp.", "https://github.com/ggerganov/llama.cpp"),
        ("At http://gitlab.com/a.b/c-d_e, 9 pages", "http://gitlab.com/a.b/c-d_e"),
        ("See (https://github.com/a/b.git).", "https://github.com/a/b"),
        ("See https://github.com/a and more", ""),
    ],
)
def test_the_repository_is_the_one_that_the_comment_names(tmp_path, said, repository):
    with arxiv_stub([replace(made_up(1)[0], comment=said)]) as stub:
        desk = Desk(tmp_path, stub)
        desk.fetcher.fetch("gradient spikes")
    (row,) = desk.library.database.rows("SELECT repository FROM imported")
    assert row["repository"] == repository


def test_the_daily_feed_takes_papers_with_classes_of_msc_and_acm_too(tmp_path):
    papers = [replace(one, category=odd) for one, odd in zip(made_up(4), CLASSES, strict=True)]
    with arxiv_stub([], *[503] * 9, announced=[(one, "new") for one in papers]) as stub:
        desk = Desk(tmp_path, stub)
        outcome = desk.fetcher.fetch("gradient spikes", "cs.LG")
    assert outcome.feed and outcome.added == (4, 0, 0)


def test_a_query_says_what_was_asked_for_and_nothing_else(tmp_path):
    text = Query('"loss spikes" adam) OR cat:math.AG', "cs.LG", "2026-11-01", "2026-11-30T12:30").text
    assert text == (
        'all:"loss spikes" AND all:adam AND all:OR AND all:"cat math AG" AND cat:cs.LG '
        "AND submittedDate:[202611010000 TO 202611301230]"
    )
    with arxiv_stub([]) as stub:
        desk = Desk(tmp_path, stub)
        for wrong, why in [
            ({}, "topic"),
            ({"category": "cs.LG AND"}, "category"),
            ({"since": "soon"}, "since"),
        ]:
            with pytest.raises(ValueError, match=f"{why} must"):
                desk.fetcher.fetch(**({"topic": "adam"} if why == "since" else {}) | wrong)
        assert stub.asked == []
        assert desk.fetcher.fetch("nobody wrote about this").added == (0, 0, 0)


def test_a_day_that_has_not_begun_is_refused_and_today_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr("thalweg.desk.fetching._now", lambda: "2026-11-30T12:30")
    with arxiv_stub(made_up(3)) as stub:
        desk = Desk(tmp_path, stub)
        for late in ("2026-12-01", "2999-01-01", "2026-11-30T12:31"):
            with pytest.raises(ValueError, match=rf"since must not .* future, .*2026-11-30 .*got '{late}'"):
                desk.fetcher.fetch("spikes", since=late)
        assert stub.asked == [] and fetches(desk.library.database) == []
        for begun in ("2026-11-30", "2026-11-30T12:30"):
            desk.fetcher.fetch("spikes", since=begun)
        assert len(stub.asked) >= 2


@pytest.mark.parametrize("fault", [429, (429, 0), 500, 503, "empty", "error", "cut", "short", "reset"])
def test_a_page_that_fails_is_asked_for_again_and_nothing_of_the_failure_is_kept(tmp_path, fault):
    papers = made_up(35)
    with arxiv_stub(papers, None, fault, fault, None, fault) as stub:
        desk = Desk(tmp_path, stub)
        assert desk.fetcher.fetch("spikes").added == (35, 0, 0)
        assert desk.starts() == [0, 10, 10, 10, 20, 20, 30]
    assert desk.ids() == [one.id for one in papers]
    abstracts = {one.title: one.abstract for one in papers}
    assert all(abstracts[one.title] == one.abstract for one in desk.library.stream()), "no half of a page"


def test_an_empty_first_page_is_no_end_either(tmp_path):
    with arxiv_stub(made_up(5), "empty") as stub:
        assert Desk(tmp_path, stub).fetcher.fetch("spikes").added == (5, 0, 0)


def test_a_slow_answer_is_waited_for_and_a_dead_one_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(manners, "TIMEOUT", (60.0, 0.5))
    with arxiv_stub(made_up(5), "slow") as stub:
        desk = Desk(tmp_path, stub, tries=12)  # on a busy machine other answers take half a second as well
        assert desk.fetcher.fetch("spikes").added == (5, 0, 0)
        assert len(stub.asked) > 1, "a second without a byte is too long here"
    monkeypatch.setattr(manners, "TIMEOUT", (60.0, 60.0))
    with arxiv_stub(made_up(5), "slow") as stub:
        assert Desk(tmp_path / "b", stub).fetcher.fetch("spikes").added == (5, 0, 0)
        assert len(stub.asked) == 1


def test_waits_grow_and_retry_after_is_obeyed(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    adapter = manners.Whole(3.0)
    waits = []
    for asked in (0, 0, 0, 100, 0):
        adapter._wait(asked)
        waits.append(adapter.not_before - now[0])
    assert waits == [6.0, 12.0, 24.0, 100.0, 96.0]
    assert manners._seconds("17") == 17.0
    assert manners._seconds("Mon, 30 Nov 1999 00:00:00 GMT") < 0 and manners._seconds("soon") == 0.0


@pytest.mark.parametrize(
    ("fault", "why"), [((429, 86400), "left alone for 86400 s"), (400, "refuses the query")]
)
def test_what_asking_again_cannot_help_is_not_asked_again(tmp_path, fault, why):
    with arxiv_stub(made_up(5), always=fault) as stub:
        with pytest.raises(ConnectionError, match=why):
            Desk(tmp_path, stub).fetcher.fetch("spikes")
        assert len(stub.asked) == 1


def test_a_page_that_never_comes_ends_the_fetch_with_what_came_and_the_next_goes_on(tmp_path):
    papers = made_up(35)
    with arxiv_stub(papers, None, None, *["empty"] * 4) as stub:
        desk = Desk(tmp_path, stub)
        with pytest.raises(ConnectionError, match="page from 20 on was empty"):
            desk.fetcher.fetch("spikes")
        assert desk.library.count() == 20
        assert "page from 20 on was empty" in desk.problems.all()[0].what
        # Papers that come in between do not move the places of those that are still to come.
        stub.papers = made_up(3, until="2027-11-20") + papers
        stub.asked.clear()
        outcome = desk.fetcher.fetch("spikes")
        assert (outcome.added, outcome.resumed) == ((15, 0, 0), 20)
        assert desk.starts() == [20, 30]
    assert sorted(desk.ids()) == sorted(one.id for one in papers)
    assert desk.problems.all() == [], "what works again is no problem any more"


def test_an_interruption_after_the_last_page_is_no_error(tmp_path):
    with arxiv_stub(made_up(20)) as stub:
        desk = Desk(tmp_path, stub)
        desk.fetcher.fetch("spikes")
        with desk.library.database.write() as on:
            on.execute("UPDATE fetches SET done = 0, start = 20")
        assert desk.fetcher.fetch("spikes").added == (0, 0, 0)


def test_max_is_kept_and_the_latest_come_first(tmp_path):
    papers = made_up(40)
    with arxiv_stub(papers) as stub:
        desk = Desk(tmp_path, stub)
        assert desk.fetcher.fetch("spikes", most=13).added == (13, 0, 0)
    assert desk.ids() == [one.id for one in papers[:13]]


def test_the_daily_job_asks_only_for_what_may_be_new(tmp_path):
    with arxiv_stub(made_up(20)) as stub:
        desk = Desk(tmp_path, stub)
        assert list(desk.fetcher.daily()) == [], "nothing is fetched unless asked for"
        assert stub.asked == []
        desk.fetcher.fetch("spikes", most=5)
        with desk.library.database.write() as on:
            on.execute("UPDATE fetches SET upto = '2026-11-25T00:00', until = '2026-11-25T00:00'")
        newer = made_up(2, until="2026-11-27")
        old = replace(stub.papers[1], version=2, updated="2026-11-26T00:00:00Z", title="On spikes again")
        stub.papers = [*newer, old, *stub.papers[2:]]
        stub.asked.clear()
        (outcome,) = desk.fetcher.daily()
        low = stub.asked[0]["search_query"].partition("[")[2][:8]
    assert low == "20261118", "a week is looked at again, since papers appear later than they are submitted"
    assert outcome.added[:2] == (2 + 7, 1), "twelve of that week were there, and five of them known"
    assert desk.library.by_id(old.id).title == "On spikes again"


def test_a_short_fetch_in_between_hides_nothing_from_the_daily_job(tmp_path):
    with arxiv_stub(made_up(8)) as stub:
        desk = Desk(tmp_path, stub)
        desk.fetcher.fetch("spikes")
        with desk.library.database.write() as on:
            on.execute("UPDATE fetches SET upto = '2026-11-21T00:00'")
        stub.papers = made_up(30, until="2026-11-28") + stub.papers
        desk.fetcher.fetch("spikes", most=3)
        (outcome,) = desk.fetcher.daily()
        assert outcome.added[:2] == (27, 0)
        stub.asked.clear()
        list(desk.fetcher.daily())
        assert "[202611210000" not in stub.asked[0]["search_query"], "which then goes on from there"


def test_a_failing_topic_does_not_stop_the_daily_job(tmp_path):
    with arxiv_stub(made_up(3)) as stub:
        desk = Desk(tmp_path, stub, tries=1)
        desk.fetcher.fetch("gradient")
        desk.fetcher.fetch("spikes")
        stub.faults = [500]
        assert [one.name for one in desk.fetcher.daily()] == ["spikes"]
        assert desk.fetcher.failed == ["gradient"]
        assert [one.source for one in desk.problems.all()] == ["fetch gradient"], (
            "success elsewhere hides none"
        )
        assert len(list(desk.fetcher.daily())) == 3, "the failed one is ended and then asked for what is new"
        assert desk.problems.all() == []


def test_a_damaged_fetch_does_not_stop_the_daily_job_and_is_reported(tmp_path):
    topics = ("adam noise", "gradient spikes", "loss plateaus")
    with arxiv_stub(made_up(3) + made_up(3, "loss plateaus", "2026-11-10")) as stub:
        desk = Desk(tmp_path, stub)
        for topic in topics:
            desk.fetcher.fetch(topic)
        for change in ("upto = ''", "until = 'soon'", "most = 'x'", "start = -1", "done = 0, upto = '9'"):
            with desk.library.database.write() as on:
                on.execute(f"UPDATE fetches SET {change} WHERE topic = 'adam noise'")
            desk.fetcher.damaged.clear()
            assert [one.name for one in desk.fetcher.daily()] == ["gradient spikes", "loss plateaus"], change
            assert desk.fetcher.damaged == ["adam noise"]
            (problem,) = desk.problems.all()
            assert "adam noise" in problem.what and "thalweg papers repair" in problem.what
            # Asked for by name it begins anew.
            desk.fetcher.fetch("adam noise")
        assert len(list(desk.fetcher.daily())) == 3 and desk.problems.all() == []


def test_what_is_forgotten_is_fetched_no_more_by_the_daily_job(tmp_path):
    with arxiv_stub(made_up(3)) as stub:
        desk = Desk(tmp_path, stub)
        desk.fetcher.fetch("gradient spikes")
        desk.fetcher.fetch("adam", "cs.LG")
        desk.fetcher.forget("adam", "cs.LG")
        assert [one.name for one in desk.fetcher.daily()] == ["gradient spikes"]
        assert len(desk.ids()) == 3
        with pytest.raises(ValueError, match="--topic adam was never fetched; what was: --topic 'gradient"):
            desk.fetcher.forget("adam")


def test_the_daily_feed_stands_in_when_the_api_keeps_refusing(tmp_path):
    papers = made_up(4)
    with arxiv_stub(papers, always=429) as stub:
        stub.announced = [
            (papers[0], "new"),
            (papers[1], "replace"),
            (replace(papers[2], title="x", abstract="y"), "new"),
        ]
        desk = Desk(tmp_path, stub)
        outcome = desk.fetcher.fetch("gradient spikes", "cs.LG")
        assert outcome.feed and outcome.added == (1, 0, 0)
        found = desk.library.by_id(papers[0].id)
        assert (found.summary, found.authors) == (papers[0].abstract, ("Ada Arden", "Ben Brook"))
        assert desk.problems.all(), "that the API refused is said"
        stub.always = None
        assert desk.fetcher.fetch("gradient spikes", "cs.LG").added == (3, 1, 0), "the API is asked again"
        assert desk.library.by_id(papers[0].id).date == papers[0].published[:10]


def test_one_fetch_at_a_time(tmp_path):
    with arxiv_stub(made_up(3)) as stub:
        first, second = Desk(tmp_path, stub), Desk(tmp_path, stub)
        with first.fetcher._alone(), pytest.raises(ValueError, match="another fetch is under way"):
            second.fetcher.fetch("spikes")
        assert second.fetcher.fetch("spikes").added == (3, 0, 0)


def command(*words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "thalweg", "papers", "fetch", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def test_a_fetch_that_is_killed_loses_nothing_confirmed_and_the_next_ends_it(tmp_path):
    papers = made_up(450)
    with arxiv_stub(papers, answers=2) as stub:
        words = ("--topic", "spikes", "--max", 450, "--data", tmp_path, "--api", stub.api, "--delay", 0.001)
        process = command(*words)
        while len(stub.asked) < 3:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept = Library(Database(tmp_path)).count()
        assert kept in (100, 200), "whole pages"
        asked = len(stub.asked)
        stub.answers = 10**9
        process = command(*words)
        said = process.communicate()[0]
        assert process.returncode == 0, said
    assert f"{450 - kept} new" in said and f"went on at {kept}" in said
    assert int(stub.asked[asked]["start"]) == kept, "what was confirmed is not asked for again"
    library = Library(Database(tmp_path))
    assert [one.title for one in library.stream()] == [one.title for one in papers]


def test_an_error_in_the_shape_of_a_paper_is_no_paper_and_no_success(tmp_path):
    with arxiv_stub(made_up(3), always="error") as stub:
        words = ("--topic", "spikes", "--data", tmp_path, "--api", stub.api, "--delay", 0.001)
        process = command(*words)
        said = process.communicate()[0]
        assert process.returncode == 2 and "incorrect id format for 1234.12345 & others" in " ".join(
            said.split()
        )
        desk = Desk(tmp_path, stub)
        assert desk.library.count() == 0 and "answers with an error" in desk.problems.all()[0].what
        stub.always = None
        assert desk.fetcher.fetch("spikes").added == (3, 0, 0)


def test_what_went_wrong_is_said_in_one_line(tmp_path):
    with arxiv_stub(made_up(3), always=400) as stub:
        process = command("--topic", "spikes", "--data", tmp_path, "--api", stub.api, "--delay", 0.001)
        said = process.communicate()[0]
    assert process.returncode == 2
    assert "refuses the query" in said and "Traceback" not in said


def test_options_are_named_as_they_are_typed(tmp_path):
    for words, why in (
        (("--topic", "a", "--max", 0), "--max must be an integer >= 1, got 0"),
        (("--daily", "--topic", "a"), "give no --topic, --category or --since"),
        (("--daily", "--forget"), "--forget is for one topic, category or both"),
        (("--forget", "--category", "cs.LG"), "--category cs.LG was never fetched; what was: nothing yet"),
        ((), "say what to fetch: --topic with at least one word, --category such as cs.LG, or both; --daily"),
    ):
        process = command(*words, "--data", tmp_path)
        said = " ".join(process.communicate()[0].split())
        assert process.returncode == 2 and why in said


def test_the_client_library_retries_what_the_adapter_raises():
    """The two must agree on what is tried again; arxiv.Client decides."""
    with arxiv_stub(made_up(3), "cut") as stub:
        client = manners.polite_client(api=stub.api, delay=0.001, tries=1)
        with pytest.raises(requests.ConnectionError, match="broke off"):
            list(client.results(arxiv.Search("all:spikes AND submittedDate:[199101010000 TO 210001010000]")))
        assert len(stub.asked) == 1
