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
    assert "J. Z." in client.get("/papers/galore").text


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
    assert len(found) == len(set(found)) == 282 + len(load())
    day = client.get("/api/daily_papers?date=2024-05-17&limit=4").json()
    assert {one["paper"]["publishedAt"] for one in day} == {"2024-05-17T00:00:00.000Z"}
    rest = [
        one
        for p in (1, 2, 3, 4, 5, 6)
        for one in client.get(f"/api/daily_papers?date=2024-05-17&limit=4&p={p}").json()
    ]
    both = [one["paper"]["id"] for one in day + rest]
    assert len(both) == len(set(both)) and find("grokfast").arxiv in both


def test_a_database_that_cannot_be_read_leaves_the_catalog(tmp_path):
    app = create_app(folder=tmp_path)
    with app.state.database.write() as on:
        on.execute("DROP TABLE library")
    client = TestClient(app)
    assert keys(client.get("/papers").text)
    assert any("imported papers cannot be read" in one.what for one in app.state.problems.all())
