"""``huggingface_hub`` works against the desk as it does against its own server."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from html import unescape

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
    app.state.shelf.library.add(
        checked({"title": f"Spikes of {name}", "abstract": "Gradient spikes.", **row})
        for name, row in {
            "an old id": {"id": "hep-th/9901001", "published": "1999-01-04"},
            "an old id with a class": {"id": "math.GT/0309136", "published": "2003-09-08"},
            "a DOI": {"id": "doi:10.1000/x(1)", "published": "2020-01-01"},
            "an archive": {"id": "pwc:adam-a/method", "published": "2020-01-02"},
        }.items()
    )
    yield from serve(app)


def test_papers_of_a_month_and_of_a_day(hub):
    entry = find("galore")
    month = {entry.arxiv for entry in load() if entry.date == "2024-03"}
    found = {one.id: one for one in hub.list_daily_papers(month="2024-03", limit=100)}
    assert month == set(found)
    assert found[entry.arxiv].title == entry.title and found[entry.arxiv].summary == entry.summary
    assert (found[entry.arxiv].published_at.year, found[entry.arxiv].published_at.month) == (2024, 3)
    assert list(hub.list_daily_papers(date="2024-03-06")) == [], "of its papers only the month is known"


def test_days_and_weeks_of_a_month_give_no_paper_twice(hub_with_imports):
    days = [
        one.id
        for day in range(1, 32)
        for one in hub_with_imports.list_daily_papers(date=f"2024-05-{day:02}", limit=100)
    ]
    weeks = [
        one.id
        for week in range(18, 23)
        for one in hub_with_imports.list_daily_papers(week=f"2024-W{week}", limit=100)
    ]
    exact = {f"2405.{number:05}" for number in range(250)}
    assert len(days) == len(set(days)) and set(days) == exact
    assert len(weeks) == len(set(weeks)) and set(weeks) == exact


def test_every_id_that_a_list_gives_is_a_paper(hub_with_imports):
    listed = {one.id for p in range(9) for one in hub_with_imports.list_daily_papers(p=p, limit=100)}
    listed |= {one.id for one in hub_with_imports.list_papers(query="gradient spikes", limit=100)}
    assert {"hep-th/9901001", "math.GT/0309136", "doi:10.1000~x(1)", "pwc:adam-a~method"} <= listed
    assert len(listed) == 254 + len(load())
    for id in listed:
        assert hub_with_imports.paper_info(id).id == id


def test_an_id_that_is_none_of_arxiv_is_found_as_it_was_imported(hub_with_imports):
    assert hub_with_imports.paper_info("doi:10.1000/x(1)").title == "Spikes of a DOI"


@pytest.mark.parametrize("written", ["arxiv:2403.03507", "arXiv:2403.03507v2", "2403.03507v1", "galore"])
def test_a_paper_by_the_ways_in_which_people_write_its_id(hub, written):
    assert hub.paper_info(written).id == find("galore").arxiv


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
    assert set(day) == exact and len(day) == len(exact)
    month = [
        one.id
        for page in range(4)
        for one in hub_with_imports.list_daily_papers(month="2024-05", limit=100, p=page)
    ]
    assert len(month) == len(set(month)) == 250 + len(month_only)


def test_the_example_of_the_page_about_the_api_runs_as_it_stands(hub, capsys):
    page = urllib.request.urlopen(f"{hub.endpoint}/api").read().decode()
    (code,) = re.findall(r'aria-label="Code"><code>(.*?)</code>', page, re.DOTALL)
    exec(unescape(code), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_list_says_what_the_paper_itself_says(hub):
    entry = find("galore")
    alone = hub.paper_info(entry.arxiv)
    listed = next(one for one in hub.list_daily_papers(month="2024-03", limit=100) if one.id == entry.arxiv)
    assert (listed.upvotes, listed.github_repo) == (0, entry.repository)
    for name in ("upvotes", "comments", "ai_keywords", "github_repo", "organization", "summary"):
        assert getattr(listed, name) == getattr(alone, name), name
