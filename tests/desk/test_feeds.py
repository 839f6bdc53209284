"""Feeds that readers take: well-formed, newest first, the same entry always under the same id."""

from xml.etree import ElementTree

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.papers import load

ATOM = "{http://www.w3.org/2005/Atom}"


@pytest.fixture(scope="module")
def client():
    return TestClient(create_app())


def entries(client, address):
    answer = client.get(address)
    assert answer.headers["content-type"].startswith("application/atom+xml")
    return ElementTree.fromstring(answer.content).findall(f"{ATOM}entry")


def test_a_topics_feed_holds_its_papers_newest_first(client):
    topic = "optimizer"
    expected = {entry.title for entry in load() if topic in entry.topics}
    found = entries(client, f"/feeds/papers.atom?topic={topic}")
    assert {one.findtext(f"{ATOM}title") for one in found} <= expected
    assert len(found) == min(50, len(expected))
    days = [one.findtext(f"{ATOM}updated") for one in found]
    assert days == sorted(days, reverse=True)


def test_ids_are_the_papers_own_and_differ(client):
    everything = entries(client, "/feeds/papers.atom")
    ids = [one.findtext(f"{ATOM}id") for one in everything]
    assert len(ids) == len(set(ids)) == 50
    of_room = {one.findtext(f"{ATOM}id") for one in entries(client, "/feeds/papers.atom?room=optim&q=galore")}
    assert "https://arxiv.org/abs/2403.03507" in of_room


def test_rss_has_the_same_papers(client):
    answer = client.get("/feeds/papers.rss?room=probe")
    assert answer.headers["content-type"].startswith("application/rss+xml")
    titles = [one.findtext("title") for one in ElementTree.fromstring(answer.content).iter("item")]
    assert titles == [
        one.findtext(f"{ATOM}title") for one in entries(client, "/feeds/papers.atom?room=probe")
    ]


def test_what_a_query_holds_is_escaped_and_nothing_found_is_an_empty_feed(client):
    assert entries(client, "/feeds/papers.atom?topic=%3Cb%3E%26%22no") == []


def test_a_room_or_kind_that_is_not_there_is_refused(client):
    assert client.get("/feeds/papers.atom?room=kitchen").status_code == 400
    assert client.get("/feeds/papers.json").status_code == 422
