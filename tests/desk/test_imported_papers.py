"""Imported papers on the pages and in the API: by their exact day, marked where they were guessed at."""

from __future__ import annotations

import re
import time
from html import unescape

import pytest
from fastapi.testclient import TestClient

from desk_people import person
from thalweg.desk.app import create_app
from thalweg.desk.imported import checked
from thalweg.papers import find, load

ATTACK = "<script>alert(1)</script>"


def paper(number: int, day: str, **more):
    return checked(
        {
            "id": f"2405.{number:05}",
            "title": f"Gradient spikes number {number} in training with Adam",
            "abstract": "Loss spikes follow gradient spikes; momentum reset and clipping help Adam.",
            "authors": ["Ada Arden", "Ben Brook"],
            "published": day,
            **more,
        }
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    app = create_app(folder=tmp_path_factory.mktemp("desk"))
    app.state.shelf.library.add(
        [
            *(paper(number, f"2024-05-{number % 28 + 1:02}") for number in range(280)),
            paper(
                900, "2024-06-01", title=ATTACK, authors=[ATTACK], organisation="University of <b>Nowhere</b>"
            ),
            checked({"id": "doi:10.1000/a", "title": "By another name", "published": "2024-06-02"}),
            checked({"id": "hep-th/9901001", "title": "Old", "published": "1999-01"}),
            checked(
                {
                    "id": f"{find('galore').arxiv}v2",
                    "title": "?",
                    "published": "2024-03-06",
                    "authors": ["J. Z."],
                }
            ),
        ]
    )
    return app


@pytest.fixture(scope="module")
def client(site):
    return TestClient(site)


def keys(text):
    return re.findall(r'<h2><a href="/papers/([^"]+)">', text)


def test_a_day_shows_its_papers_and_the_catalogs_of_that_month_apart(client):
    text = client.get("/papers?date=2024-05-17").text
    days, _, month = text.partition("From the built-in catalog, May 2024")
    assert set(keys(days)) == {f"2405.{number:05}" for number in range(280) if number % 28 + 1 == 17}
    assert "grokfast" in keys(month)
    assert "2 authors" in days and "automatic" in days
    assert 'href="/papers?date=2024-05-16" rel="next"' in text
    assert 'href="/papers?date=2024-05-18" rel="prev"' in text


def test_a_week_and_a_month_go_on_over_pages(client):
    seen, address = [], "/papers?week=2024-W20"
    while address and "week=2024-W20" in address:
        text = client.get(address).text
        seen += keys(text.partition("From the built-in catalog")[0])
        address = unescape((re.search(r'href="([^"]+)" rel="next"', text) or [""] * 2)[1])
    expected = {f"2405.{number:05}" for number in range(280) if 13 <= number % 28 + 1 <= 19}
    assert len(seen) == len(expected) and set(seen) == expected
    assert address == "/papers?week=2024-W19"
    month = client.get("/papers?month=2024-05&p=1").text
    assert len(keys(month)) == 30 and 'href="/papers?month=2024-05&amp;p=2" rel="next"' in month


def test_a_paper_in_both_is_on_its_exact_day(client):
    assert keys(client.get("/papers?date=2024-03-06").text)[0] == "galore"
    text = client.get("/papers/galore").text
    assert "Jiawei Zhao, Zhenyu Zhang" in text and "J. Z." not in text


def test_a_page_of_an_imported_paper_says_what_was_guessed(client):
    text = client.get("/papers/2405.00017").text
    assert "Ada Arden, Ben Brook" in text and "arXiv 2405.00017" in text
    assert "automatic" in text and "gradient spike" in text
    assert client.get("/papers/doi:10.1000~a").status_code == 200
    assert client.get("/papers/2405.77777").status_code == 404


def test_what_comes_from_outside_is_escaped(client):
    for address in ("/papers?date=2024-06-01", "/papers/2405.00900", "/papers?month=2024-06"):
        text = client.get(address).text
        assert "alert(1)" in text and ATTACK not in text and "<b>Nowhere" not in text


def test_a_topic_and_a_finding_list_imported_papers_page_by_page(client):
    text = client.get("/papers/about?finding=gradient+spike&room=optim").text
    assert len(keys(text)) == 30 and "spam" in keys(text)
    second = client.get("/papers/about?finding=gradient+spike&room=optim&p=1").text
    assert not set(keys(text)) & set(keys(second))
    assert "All papers about gradient spike" in client.get("/findings").text
    assert client.get("/papers/about?room=kitchen").status_code == 400
    topics = client.get("/topics").text
    assert int(re.search(r">loss spikes</a> <span class=\"facts\">(\d+)", topics)[1]) > 280


def test_upvotes_bring_a_paper_up(site, client):
    before = keys(client.get("/papers/trending").text)
    database = site.state.database
    ada = person(site, "Ada").id
    with database.write() as on:
        on.execute("INSERT INTO votes VALUES ('2405.00003', ?, ?)", (ada, time.time()))
        on.execute("INSERT INTO votes VALUES ('2405.00005', ?, ?)", (ada, time.time() - 90 * 86400))
    try:
        after = keys(client.get("/papers/trending").text)
        assert after[:2] == ["2405.00003", before[0]], "an upvote of three months ago is none"
        (found,) = client.get("/api/daily_papers?sort=trending&limit=1").json()
        assert (found["paper"]["id"], found["paper"]["upvotes"]) == ("2405.00003", 1)
    finally:
        with database.write() as on:
            on.execute("DELETE FROM votes")
            on.execute("DELETE FROM people")


def test_the_api_pages_through_everything_once(client):
    found, page = [], 0
    while part := client.get(f"/api/daily_papers?limit=37&p={page}").json():
        found += [one["paper"]["id"] for one in part]
        page += 1
    assert len(found) == len(set(found)) == 283 + len(load())
    day = [
        one for p in range(5) for one in client.get(f"/api/daily_papers?date=2024-05-17&limit=4&p={p}").json()
    ]
    assert {one["paper"]["publishedAt"] for one in day} == {"2024-05-17T00:00:00.000Z"}
    ids = [one["paper"]["id"] for one in day]
    assert len(ids) == 10 and set(ids) == {f"2405.{number:05}" for number in range(280) if number % 28 == 16}


def test_papers_of_a_period_by_trend_are_all_of_them_those_that_trend_first(site, client):
    def asked(period, sort):
        found = []
        for p in range(9):
            answer = client.get(f"/api/daily_papers?{period}&sort={sort}&limit=37&p={p}").json()
            found += [one["paper"]["id"] for one in answer]
        return found

    ada, database = person(site, "Ada").id, site.state.database
    with database.write() as on:
        for number in ("2405.00016", "2405.00070"):
            on.execute("INSERT INTO votes VALUES (?, ?, ?)", (number, ada, time.time()))
    try:
        for period in ("month=2024-05", "week=2024-W20", "date=2024-05-17"):
            trend, newest = asked(period, "trending"), asked(period, "publishedAt")
            assert sorted(trend) == sorted(newest) and len(set(trend)) == len(trend)
            first = {one for one in ("2405.00016", "2405.00070") if one in newest}
            measured = {one.id for one in site.state.shelf.papers if one.measured and one.id in newest}
            assert first and set(trend[: len(first)]) == first
            assert set(trend[len(first) : len(first | measured)]) == measured
            rest = trend[len(first | measured) :]
            assert rest == [one for one in newest if one in rest]
    finally:
        with database.write() as on:
            on.execute("DELETE FROM votes")
            on.execute("DELETE FROM people")


def test_a_week_of_two_months_shows_papers_of_a_month_apart(client):
    text = client.get("/papers?week=2024-W22").text
    days, apart = text.split("From the built-in catalog", 1)
    month_only = {entry.key for entry in load() if entry.date in ("2024-05", "2024-06")}
    assert keys(days) and not month_only & set(keys(days)) and month_only <= set(keys(apart))


def test_an_old_id_has_its_page_where_a_tilde_stands_for_the_slash(client):
    for written in ("hep-th/9901001", "arxiv:hep-th/9901001v2"):
        answer = client.get(f"/papers/{written}", follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, "/papers/hep-th~9901001")
    assert "<h1>Old</h1>" in client.get("/papers/hep-th~9901001").text
    for what in ("similar", "evidence"):
        by_slash = client.get(f"/api/papers/hep-th/9901001/{what}")
        assert by_slash.status_code == {"similar": 200, "evidence": 404}[what]
        assert by_slash.text.replace("hep-th/", "hep-th~") == client.get(
            f"/api/papers/hep-th~9901001/{what}"
        ).text.replace("hep-th/", "hep-th~")
    assert client.get("/papers/hep-th/9901001/plot.svg").status_code == 404


def test_a_database_that_cannot_be_read_leaves_the_catalog(tmp_path):
    app = create_app(folder=tmp_path)
    with app.state.database.write() as on:
        on.execute("DROP TABLE library")
    client = TestClient(app)
    assert keys(client.get("/papers").text)
    assert any("imported papers cannot be read" in one.what for one in app.state.problems.all())
