"""HEAD answers what GET answers, without a body: on pages, feeds, files, the API and streams."""

from __future__ import annotations

import asyncio

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.head_requests import HeadRequests
from thalweg.watch import RunStore

ADDRESSES = {
    "/": 303,
    "/papers": 200,
    "/papers/galore": 200,
    "/papers/galore/plot.svg": 200,
    "/papers/none": 404,
    "/search?q=spike": 200,
    "/feeds/papers.atom": 200,
    "/static/desk.css": 200,
    "/api": 200,
    "/api/papers/galore": 200,
    "/api/daily_papers?p=x": 422,
    "/api/openapi.json": 200,
    "/health": 200,
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    store = tmp_path_factory.mktemp("desk") / "runs.sqlite"
    with RunStore(store, write=True) as runs:
        runs.begin("still running", {})
    return TestClient(create_app(store), follow_redirects=False)


@pytest.mark.parametrize("address", ADDRESSES)
def test_head_has_the_status_and_the_headers_of_get_and_no_body(client, address):
    got, head = client.get(address), client.head(address)
    assert head.status_code == got.status_code == ADDRESSES[address]
    assert head.content == b""
    # A form on a page brings a new cookie and so a new length with each answer.
    same = {"content-type", "content-security-policy", "cache-control", "location", "x-content-type-options"}
    assert {name: head.headers.get(name) for name in same} == {name: got.headers.get(name) for name in same}


def test_the_length_is_that_of_the_body_which_get_would_give(client):
    got = client.get("/api/papers/galore")
    assert client.head("/api/papers/galore").headers["content-length"] == str(len(got.content))


def test_head_of_a_stream_that_goes_on_ends_at_once(client):
    answer = client.head("/api/runs/1/events")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert client.app.state.lookout.viewers() == []


def test_what_only_takes_forms_refuses_head_as_it_refuses_get(client):
    assert client.get("/people/sign-out").status_code == client.head("/people/sign-out").status_code == 405


def test_the_scope_of_the_server_is_left_as_it_is():
    seen = []

    async def application(scope, receive, send):
        seen.append(scope["method"])

    async def nothing(*_):
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "HEAD", "path": "/"}
    asyncio.run(HeadRequests(application)(scope, nothing, nothing))
    assert (seen, scope["method"]) == (["GET"], "HEAD")
