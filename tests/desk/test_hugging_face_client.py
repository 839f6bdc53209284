"""``huggingface_hub`` works against the desk as it does against its own server."""

from __future__ import annotations

import threading
import time

import pytest
import uvicorn
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from thalweg.desk.app import create_app
from thalweg.papers import find, load
from thalweg.papers.status import read_evidence


@pytest.fixture(scope="module")
def hub():
    server = uvicorn.Server(uvicorn.Config(create_app(), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield HfApi(endpoint=f"http://127.0.0.1:{port}", token=False)
    server.should_exit = True
    thread.join(10)


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
