"""``huggingface_hub`` works against the desk as it does against its own server."""

from __future__ import annotations

import threading
import time

import pytest
import uvicorn
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from thalweg.desk.app import create_app
from thalweg.desk.imported import checked
from thalweg.papers import find, load
from thalweg.papers.status import read_evidence


def serve(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield HfApi(endpoint=f"http://127.0.0.1:{port}", token=False)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def hub():
    yield from serve(create_app())


@pytest.fixture(scope="module")
def hub_with_imports(tmp_path_factory):
    app = create_app(folder=tmp_path_factory.mktemp("desk"))
    app.state.shelf.library.add(
        checked(
            {
                "id": f"2405.{number:05}v1",
                "title": f"Paper {number}",
                "abstract": "Gradient spikes.",
                "authors": ["Ada Arden", "Ben Brook"],
                "organisation": "University of Nowhere",
                "repository": "https://github.com/a/b",
                "published": f"2024-05-{number % 28 + 1:02}T10:00:00Z",
            }
        )
        for number in range(250)
    )
    yield from serve(app)


def test_papers_of_a_month_and_of_a_day(hub):
    entry = find("galore")
    month = {entry.arxiv for entry in load() if entry.date == "2024-03"}
    found = {one.id: one for one in hub.list_daily_papers(month="2024-03", limit=100)}
    assert month == set(found)
    assert found[entry.arxiv].title == entry.title and found[entry.arxiv].summary == entry.summary
    assert (found[entry.arxiv].published_at.year, found[entry.arxiv].published_at.month) == (2024, 3)
    assert {one.id for one in hub.list_daily_papers(date="2024-03-06", limit=100)} == month


def test_pages_of_the_list_hold_every_paper_once(hub):
    found = []
    for page in range(20):
        part = [one.id for one in hub.list_daily_papers(p=page, limit=100)]
        found += part
        if len(part) < 100:
            break
    assert len(found) == len(set(found)) == len(load())


def test_trending_papers_are_those_that_were_measured(hub):
    measured = {entry.arxiv or entry.key for entry in load() if read_evidence(entry.key)}
    found = [one.id for one in hub.list_daily_papers(sort="trending", limit=100)]
    assert len(found) == len(set(found)) and set(found) == measured


def test_search_finds_by_words_and_by_meaning(hub):
    assert next(iter(hub.list_papers(query="galore low-rank gradient"))).id == find("galore").arxiv


def test_a_paper_by_id(hub):
    entry = find("galore")
    found = hub.paper_info(entry.arxiv)
    assert found.title == entry.title and found.id == entry.arxiv
    with pytest.raises(HfHubHTTPError):
        hub.paper_info("0000.00000")


def test_imported_papers_come_with_authors_organisation_and_day(hub_with_imports):
    found = hub_with_imports.paper_info("2405.00016")
    assert (found.title, found.summary) == ("Paper 16", "Gradient spikes.")
    assert [one.name for one in found.authors] == ["Ada Arden", "Ben Brook"]
    assert found.organization.name == "University of Nowhere"
    assert found.github_repo == "https://github.com/a/b"
    assert (found.published_at.year, found.published_at.month, found.published_at.day) == (2024, 5, 17)
    assert (found.upvotes, found.comments) == (0, 0)
    listed = next(iter(hub_with_imports.list_daily_papers(date="2024-05-17", limit=1)))
    assert listed.published_at.day == 17 and listed.organization.name == "University of Nowhere"


def test_a_day_holds_its_imported_papers_and_a_month_both(hub_with_imports):
    day = [one.id for one in hub_with_imports.list_daily_papers(date="2024-05-17", limit=100)]
    exact = {f"2405.{number:05}" for number in range(250) if number % 28 == 16}
    month_only = {entry.arxiv for entry in load() if entry.date == "2024-05"}
    assert set(day[: len(exact)]) == exact and set(day[len(exact) :]) == month_only
    month = [
        one.id
        for page in range(4)
        for one in hub_with_imports.list_daily_papers(month="2024-05", limit=100, p=page)
    ]
    assert len(month) == len(set(month)) == 250 + len(month_only)
