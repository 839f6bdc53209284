"""Feeds as readers take them: valid, each entry always under one id, asked again and not sent again."""

from __future__ import annotations

import dataclasses
import re
import time
from datetime import datetime
from email.utils import parsedate_to_datetime

import feedparser
import pytest
from fastapi.testclient import TestClient
from lxml import etree

from thalweg.desk import feed_writing
from thalweg.desk.app import create_app
from thalweg.desk.imported import checked
from thalweg.desk.library import Library
from thalweg.papers import find, load

ATOM = "{http://www.w3.org/2005/Atom}"
FEEDS = [
    "",
    "topic=optimizer",
    "room=probe",
    "finding=loss+spike",
    "q=loss+spikes+in+training",
    "q=%3Cb%3E%26no",
]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
IRI = re.compile(r"(https?://|urn:uuid:)\S+")


@pytest.fixture(scope="module")
def client():
    return TestClient(create_app(public="https://desk.example.org"))


def read(client, address="/feeds/papers.atom"):
    """The feed as a feed reader understands it."""
    answer = client.get(address)
    assert answer.status_code == 200
    found = feedparser.parse(answer.content)
    assert not found.bozo, found.bozo_exception
    return found


@pytest.mark.parametrize("query", FEEDS)
def test_atom_holds_to_rfc_4287(client, query):
    answer = client.get(f"/feeds/papers.atom?{query}")
    assert answer.headers["content-type"].startswith("application/atom+xml")
    feed = etree.fromstring(answer.content)
    assert feed.tag == f"{ATOM}feed"
    for one in (feed, *feed.findall(f"{ATOM}entry")):
        for name in ("id", "title", "updated"):
            assert len(one.findall(f"{ATOM}{name}")) == 1, name
        assert IRI.fullmatch(one.findtext(f"{ATOM}id")) and one.findtext(f"{ATOM}title").strip()
        moments = [one.findtext(f"{ATOM}updated"), one.findtext(f"{ATOM}published") or "1970-01-01T00:00:00Z"]
        assert all(RFC3339.fullmatch(moment) for moment in moments) and moments[0] >= moments[1][:19]
        assert "1970" not in moments[0] and "1970" not in (one.findtext(f"{ATOM}published") or "")
        for link in one.findall(f"{ATOM}link"):
            assert link.get("href").startswith("https://desk.example.org/")
    # The author of the feed is that of entries without one.
    assert feed.findtext(f"{ATOM}author/{ATOM}name")
    (own,) = [link for link in feed.findall(f"{ATOM}link") if link.get("rel") == "self"]
    assert client.get(own.get("href")).content == answer.content
    ids = [one.text for one in feed.iter(f"{ATOM}id")]
    assert len(ids) == len(set(ids))
    for entry in feed.findall(f"{ATOM}entry"):
        kinds = [link.get("rel", "alternate") for link in entry.findall(f"{ATOM}link")]
        assert kinds.count("alternate") == 1 and entry.find(f"{ATOM}content").get("type") == "html"


@pytest.mark.parametrize("query", FEEDS)
def test_rss_holds_to_its_rules_and_has_the_same_papers(client, query):
    answer = client.get(f"/feeds/papers.rss?{query}")
    assert answer.headers["content-type"].startswith("application/rss+xml")
    rss = etree.fromstring(answer.content)
    assert rss.tag == "rss" and rss.get("version") == "2.0"
    (channel,) = rss.findall("channel")
    for name in ("title", "link", "description"):
        assert len(channel.findall(name)) == 1 and channel.findtext(name).strip()
    for item in channel.findall("item"):
        assert item.findtext("title") and item.findtext("description")
        assert item.findtext("link").startswith("https://desk.example.org/papers/")
        when = item.findtext("pubDate")
        assert when is None or (parsedate_to_datetime(when).tzinfo and "1970" not in when)
        assert item.find("guid").get("isPermaLink") == "false"
    atom = read(client, f"/feeds/papers.atom?{query}")
    assert [item.findtext("guid") for item in channel.findall("item")] == [one.id for one in atom.entries]


def test_a_topics_feed_holds_its_papers_latest_news_first(client):
    expected = {entry.title for entry in load() if "optimizer" in entry.topics}
    found = read(client, "/feeds/papers.atom?topic=optimizer")
    assert {one.title for one in found.entries} == expected and len(found.entries) <= 50
    days = [one.updated for one in found.entries if "published" in one]
    assert days == sorted(days, reverse=True)


def test_a_paper_without_a_date_says_none_and_stands_last(database):
    site = create_app(folder=database.folder)
    found = read(TestClient(site), "/feeds/papers.atom?room=theory").entries
    undated = {one.title for one in load() if one.room == "theory" and not one.date}
    places = [place for place, one in enumerate(found) if one.title in undated]
    assert places and places == list(range(len(found) - len(places), len(found)))
    for one in found:
        assert ("published" in one) == (one.title not in undated)
        assert one.updated >= "2000" and (one.title not in undated or one.updated[:4] == time.strftime("%Y"))


def test_a_day_that_has_not_come_is_that_of_the_import(database):
    client = TestClient(create_app(folder=database.folder))
    row = {"id": "doi:10.1/future", "title": "From the year 2999", "published": "2999-01-01"}
    library = Library(database)
    assert library.add([checked(row)]).new == 1 and library.add([checked(row)]).known == 1
    assert "2999-" not in client.get("/papers").text and "2999-" not in client.get("/feeds/papers.atom").text
    assert read(client).feed.updated[:4] == time.strftime("%Y")
    now = library.add([checked({**row, "title": "Corrected", "published": "2024-02-02"})])
    assert now.newer == 1 and library.by_id("doi:10.1/future").date == "2024-02-02"


def test_what_was_guessed_is_marked_and_findings_are_named(client, database, bring):
    bring(1)
    found = read(TestClient(create_app(folder=database.folder))).entries
    (content,) = [one.content[0].value for one in found if "2601." in one.id]
    assert "Helps against gradient spike" in content
    assert "(automatic)." in content and "· automatic" in content
    ours = find("spam")
    found = read(client, "/feeds/papers.atom?q=spam").entries
    (content,) = [one.content[0].value for one in found if ours.title == one.title]
    assert f"Helps against {', '.join(ours.addresses)}." in content and "automatic" not in content


def test_an_entry_says_what_is_claimed_and_what_was_measured(client):
    (entry,) = [one for one in read(client, "/feeds/papers.atom?q=galore").entries if "2403.03507" in one.id]
    assert entry.id == "https://arxiv.org/abs/2403.03507"
    assert entry.link == "https://desk.example.org/papers/galore"
    content = entry.content[0].value
    assert find("galore").claim[:60] in content and "Measured here: reproduced; " in content


def test_who_has_a_feed_is_not_sent_it_again(client):
    first = client.get("/feeds/papers.atom")
    tag, when = first.headers["etag"], first.headers["last-modified"]
    assert parsedate_to_datetime(when) == datetime.fromisoformat(read(client).feed.updated)

    def asked(**headers):
        return client.get("/feeds/papers.atom", headers={n.replace("_", "-"): v for n, v in headers.items()})

    for headers in (
        {"If_None_Match": tag},
        {"If_None_Match": f'"other", W/{tag}'},
        {"If_None_Match": "*"},
        {"If_Modified_Since": when},
    ):
        answer = asked(**headers)
        assert answer.status_code == 304 and answer.content == b"" and answer.headers["etag"] == tag
    for headers in (
        {"If_None_Match": '"other"', "If_Modified_Since": when},  # the tag decides
        {"If_Modified_Since": "Thu, 01 Jan 1970 00:00:00 GMT"},
        {"If_Modified_Since": "yesterday"},
    ):
        assert asked(**headers).content == first.content


def test_a_verdict_that_is_published_is_news_once(database, monkeypatch):
    site = create_app(folder=database.folder)
    client = TestClient(site)
    before = client.get("/feeds/papers.atom")
    (paper,) = [one for one in site.state.shelf.papers if one.key == "galore"]
    verdict = dataclasses.replace(paper.measured, verdict="not reproduced")
    monkeypatch.setitem(paper.__dict__, "measured", verdict)
    found = read(client)
    assert (
        client.get("/feeds/papers.atom", headers={"If-None-Match": before.headers["etag"]}).status_code == 200
    )
    assert found.entries[0].id == "https://arxiv.org/abs/2403.03507"
    assert "not reproduced" in found.entries[0].content[0].value
    assert abs(datetime.fromisoformat(found.entries[0].updated).timestamp() - time.time()) < 600
    assert read(client).entries[0].updated == found.entries[0].updated


def test_a_paper_that_an_upgrade_brings_is_new_on_that_day(database):
    client = TestClient(create_app(folder=database.folder))
    assert len(read(client).entries) == 50
    with database.write() as on:
        on.execute("DELETE FROM first_seen WHERE paper = 'sgdr'")
    assert read(client).entries[0].link.endswith("/papers/sgdr")


def test_imported_papers_have_their_day_and_are_news_when_they_come(database):
    client = TestClient(create_app(folder=database.folder))
    row = {"id": "2401.12345v3", "title": "Sudden <b>spikes</b> & falls", "published": "2024-01-23",
           "authors": ["Ada Lovelace"], "abstract": "Loss spikes in training."}  # fmt: skip
    Library(database).add([checked(row), checked({**row, "id": "doi:10.1/1", "title": "Without arXiv"})])
    found = read(client)
    first = {one.title: one for one in found.entries[:2]}
    entry = first["Sudden <b>spikes</b> & falls"]
    assert entry.published == "2024-01-23T00:00:00+00:00" and entry.id == "https://arxiv.org/abs/2401.12345"
    assert entry.author == "Ada Lovelace" and entry.updated > entry.published
    assert first["Without arXiv"].id.startswith("urn:uuid:")
    assert "Sudden <b>spikes</b> & falls" in [
        one.title for one in read(client, "/feeds/papers.atom?q=loss+spikes").entries
    ]


def test_a_broken_row_is_left_out_and_reported_and_the_others_stay(database, bring):
    bring(1, 2, 3)
    with database.write() as on:
        on.execute("UPDATE imported SET title = x'ff00', authors = '{torn' WHERE id = '2601.00002'")
        on.execute("UPDATE imported SET published = 'someday', topics = '[3' WHERE id = '2601.00003'")
    site = create_app(folder=database.folder)
    for kind in ("atom", "rss"):
        titles = [one.title for one in read(TestClient(site), f"/feeds/papers.{kind}").entries]
        assert sum("Paper 1 on" in title for title in titles) == 1
        assert sum("Paper 3 on" in title for title in titles) == 1
        assert not any("Paper 2 on" in title for title in titles) and "" not in titles
    found = TestClient(site).get("/api/health").json()["checks"]
    said = next(one["what"] for one in found if one["name"] == "imported papers")
    assert "damaged are the rows of 2601.00003, 2601.00002:" in said


def test_a_paper_that_cannot_be_written_is_left_out_and_reported_and_the_others_stay(
    database, bring, monkeypatch
):
    bring(1, 2, 3)
    whole = feed_writing.paper_text

    def torn(paper, public):
        if paper.id == "2601.00002":
            raise ValueError("it is torn")
        return whole(paper, public)

    monkeypatch.setattr(feed_writing, "paper_text", torn)
    site = create_app(folder=database.folder)
    for kind in ("atom", "rss"):
        titles = [one.title for one in read(TestClient(site), f"/feeds/papers.{kind}").entries]
        assert len(titles) == 49 and sum("Paper 2 on" in title for title in titles) == 0
    (problem,) = [one for one in site.state.problems.all() if one.source == "feeds"]
    assert problem.what == "2601.00002 is left out: ValueError it is torn" and problem.times == 2


@pytest.mark.parametrize("query", ["", "topic=loss+spikes", "q=loss+spikes"])
def test_a_damaged_database_leaves_the_feeds_of_the_catalog(database, query):
    site = create_app(folder=database.folder)
    for file in database.folder.glob("desk.sqlite*"):
        with file.open("r+b") as raw:
            raw.seek(100)
            raw.write(b"\xff" * max(0, file.stat().st_size - 100))
    site.state.database.connection.close()
    del site.state.database._own.connection
    found = read(TestClient(site), f"/feeds/papers.atom?{query}").entries
    assert any("spikes" in str(one.get("tags")) for one in found)
    assert "database" in {one.source for one in site.state.problems.all()}


@pytest.mark.parametrize(
    ("page", "feed"),
    [
        ("/papers", "/feeds/papers.atom"),
        ("/search?topic=loss+spikes", "/feeds/papers.atom?topic=loss+spikes"),
        ("/search?q=spikes+%26+Adam&room=optim", "/feeds/papers.atom?q=spikes+%26+Adam&room=optim"),
        ("/findings", "/feeds/papers.atom?finding=loss+spike"),
        ("/methods", "/feeds/papers.atom?room=optim"),
    ],
)
def test_a_page_names_its_feed(client, page, feed):
    links = etree.HTML(client.get(page).text).xpath(
        "//link[@rel='alternate'][@type='application/atom+xml']/@href"
    )
    shown = etree.HTML(client.get(page).text).xpath("//a/@href")
    links, shown = ({address.replace("%20", "+") for address in found} for found in (links, shown))
    assert feed in links and feed in shown
    assert feed.replace("/feeds/papers.atom", "/subscribe") in shown
    assert client.get(feed).status_code == 200


def test_links_come_from_the_public_address_or_the_listening_one_never_from_the_host_header():
    for public, base in (
        ("https://desk.example.org", "https://desk.example.org"),
        (None, "http://testserver"),
    ):
        client = TestClient(create_app(public=public))
        text = client.get("/feeds/papers.rss", headers={"Host": "evil.example"}).text
        assert "evil.example" not in text and f"<link>{base}/papers</link>" in text


def test_what_is_not_there_is_refused(client):
    assert client.get("/feeds/papers.atom?room=kitchen").status_code == 400
    assert client.get("/feeds/papers.atom?finding=hunger").status_code == 400
    assert client.get("/feeds/papers.json").status_code == 422
    answer = client.get("/feeds/papers.atom?topic=los+spikes")
    assert answer.status_code == 400 and "did you mean loss spikes" in answer.text
    answer = client.get("/feeds/papers.atom?topic=%3Cb%3E%26%22no")
    assert answer.status_code == 400 and "&lt;b&gt;" in answer.text


def test_a_topics_feed_is_the_same_in_any_case(client):
    exact, other = (client.get(f"/feeds/papers.atom?topic={one}") for one in ("loss+spikes", "Loss+Spikes"))
    assert exact.content == other.content and b"<entry>" in exact.content
