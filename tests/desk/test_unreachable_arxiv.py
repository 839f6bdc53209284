"""What is said while arXiv does not answer, when it is given up, and how a fetch goes on."""

from __future__ import annotations

import shlex
import socket

import pytest
from typer.testing import CliRunner

from arxiv_stub import arxiv_stub, made_up
from thalweg.cli import app as command
from thalweg.desk.arxiv_source import ArxivSource, Query
from thalweg.desk.database import Database
from thalweg.desk.fetching import Fetcher, fetches
from thalweg.desk.library import Library
from thalweg.desk.manners import polite_client


def client_of(stub, **more):
    return polite_client(api=stub.api, delay=0.001, page=10, **{"tries": 4, **more})


def fetcher(folder, client):
    return Fetcher(Library(Database(folder)), ArxivSource(client))


def fetch(*words):
    return CliRunner().invoke(command, ["papers", "fetch", *map(str, words)])


@pytest.fixture
def refusing():
    """The address of a port on which nothing listens, and which nobody else gets meanwhile."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("", "it cannot be reached (connection refused)"),
        ("http://nowhere.invalid", "its name cannot be resolved (is there a network?)"),
    ],
)
@pytest.mark.parametrize("words", [("--topic", "spikes"), ("--category", "cs.LG"), ("--daily",)])
def test_without_a_way_to_arxiv_it_is_said_at_once_and_given_up_after_two_tries(
    tmp_path, refusing, words, place, why
):
    address = place or refusing
    for topic in ("first", "second"):
        with arxiv_stub([]) as stub:
            fetcher(tmp_path, client_of(stub)).fetch(topic)
    more = ("--data", tmp_path, "--api", f"{address}/api", "--feed", f"{address}/atom", "--delay", 0.01)
    said = fetch(*words, *more)
    assert said.exit_code == 2
    assert said.stderr.splitlines() == [
        f"arXiv does not answer: {why}; it is asked again in 0 s",
        f"thalweg papers: arXiv did not answer: {why}; "
        "what came before is kept, and the same command goes on",
    ]


def test_every_wait_is_told_and_the_last_failure_promises_none():
    told = []
    with arxiv_stub(made_up(3), always=503) as stub:
        client = client_of(stub, tries=3, told=told.append)
        with pytest.raises(ConnectionError, match=r"arXiv did not answer: it refuses for now \(503\)$"):
            list(ArxivSource(client).pages(Query("spikes")))
        assert len(stub.asked) == 3
    assert told == ["arXiv does not answer: it refuses for now (503); it is asked again in 0 s"] * 2


def test_a_way_that_is_lost_in_the_middle_is_tried_as_long_as_ever():
    with arxiv_stub(made_up(35)) as stub:
        client = client_of(stub)
        pages = ArxivSource(client).pages(Query("spikes"))
        next(pages)
        adapter = client._session.get_adapter("http://")
    with pytest.raises(ConnectionError, match="connection refused"):
        next(pages)
    assert adapter.failures == 4 and not adapter.unreachable


def test_what_the_health_page_says_goes_on_does(tmp_path):
    with arxiv_stub(made_up(35), None, None, *["empty"] * 4) as stub:
        with pytest.raises(ConnectionError):
            fetcher(tmp_path, client_of(stub)).fetch("gradient spikes", since="2026-11-01", most=33)
        (open_,) = fetches(Database(tmp_path))
        words = shlex.split(open_.command)
        assert words[:3] == ["thalweg", "papers", "fetch"]
        said = fetch(*words[3:], "--data", tmp_path, "--api", stub.api, "--delay", 0.001)
        assert "13 new, 0 newer versions, 0 known, went on at 20" in said.stdout
