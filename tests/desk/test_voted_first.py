"""Days, weeks and months show what was upvoted first, then the latest submission; every paper once."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.imported import checked
from thalweg.desk.periods import period_of
from thalweg.desk.voted_first import by_votes
from thalweg.papers import load

OURS = next(entry for entry in load() if entry.date == "2024-05")
IDS = [f"2405.{number:05}" for number in range(70)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    app = create_app(folder=tmp_path_factory.mktemp("desk"))
    app.state.shelf.library.add(
        checked({"id": one, "title": f"Paper {one}", "published": f"2024-05-17T{23 - place % 24:02}:00:00Z"})
        for place, one in enumerate(IDS)
    )
    app.state.shelf.library.add(
        [checked({"id": "hep-th/9901001", "title": "Old", "published": "2024-05-16"})]
    )
    with app.state.database.write() as on:
        for person in range(1, 4):
            on.execute(
                "INSERT INTO people (id, name, folded, role, password, since) VALUES (?, ?, ?, '', '', 0)",
                (person, f"p{person}", f"p{person}"),
            )
        for key, votes in (("hep-th~9901001", 2), (IDS[50], 3), (IDS[60], 1), (IDS[40], 1), (OURS.key, 3)):
            on.executemany("INSERT INTO votes VALUES (?, ?, 1)", [(key, one + 1) for one in range(votes)])
    return app


def keys(text):
    return re.findall(r'<h2><a href="/papers/([^"]+)">', text)


def test_a_day_shows_upvoted_papers_first_and_then_the_latest_submissions(site):
    client = TestClient(site)
    shown = keys(client.get("/papers?date=2024-05-17").text.partition("From the built-in")[0])
    # 40, 50 and 60 were submitted at 7, 21 and 11 o'clock.
    assert shown[:3] == [IDS[50], IDS[60], IDS[40]]
    assert shown[3:6] == [IDS[48], IDS[24], IDS[0]], "of one moment what came last is first"
    for number in (1, 2):
        text = client.get(f"/papers?date=2024-05-17&p={number}").text
        shown += keys(text.partition("From the built-in")[0])
    assert len(shown) == 70 and set(shown) == set(IDS)


def test_a_week_and_a_month_hold_the_upvoted_of_all_their_days(site):
    client = TestClient(site)
    assert keys(client.get("/papers?week=2024-W20").text)[:3] == [IDS[50], "hep-th~9901001", IDS[60]]
    month = keys(client.get("/papers?month=2024-05").text)
    assert month[:3] == [IDS[50], OURS.key, "hep-th~9901001"]
    api = client.get("/api/daily_papers?month=2024-05&limit=3").json()
    assert [one["paper"]["thalweg"]["key"] for one in api] == month[:3]


def test_pages_of_any_size_hold_every_paper_once(site):
    period = period_of(month="2024-05")
    whole = by_votes(site.state.shelf, period, 0, 999)
    assert len({one.key for one in whole}) == len(whole) == site.state.shelf.order.count_of(period)
    for size in (1, 3, 30):
        parts = [by_votes(site.state.shelf, period, start, size) for start in range(0, len(whole), size)]
        assert [one for part in parts for one in part] == whole


def test_without_votes_the_order_is_the_reading_order(site):
    period = period_of(date="2024-05-16")
    assert [one.key for one in by_votes(site.state.shelf, period, 0, 9)] == ["hep-th~9901001"]
    with site.state.database.write() as on:
        on.execute("ALTER TABLE votes RENAME TO away")
    try:
        month = period_of(month="2024-05")
        found = by_votes(site.state.shelf, month, 0, 9, site.state.problems)
        assert found == site.state.shelf.order.page_of(month, 0, 9)
        assert "cannot be read" in site.state.problems.all()[0].what
    finally:
        with site.state.database.write() as on:
            on.execute("ALTER TABLE away RENAME TO votes")
