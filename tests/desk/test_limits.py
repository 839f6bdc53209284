"""How often one may try: the window against a count by hand, and what a browser sees of it."""

from __future__ import annotations

import re
import subprocess
import sys

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from desk_people import browser, form_token, send, signed_in
from thalweg.desk import limits
from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.limits import ALLOWED, Limits


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.floats(0, 20), max_size=60),
    most=st.integers(1, 5),
    seconds=st.floats(1, 30),
)
def test_in_no_window_are_more_tries_than_allowed_and_none_is_refused_without_need(steps, most, seconds):
    kept, taken, now = Limits(), [], 0.0
    for step in steps:
        now += step
        within = [one for one in taken if one > now - seconds]
        wait = kept.wait(("try", "address", "here"), most, seconds, now)
        assert (wait == 0) == (len(within) < most)
        if not wait:
            taken.append(now)
        else:
            assert wait == pytest.approx(within[0] + seconds - now, abs=1e-3)


def test_one_address_does_not_use_up_anothers_tries_and_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(limits, "MOST", 50)
    kept = Limits()
    for number in range(500):
        assert kept.wait(("try", "address", str(number)), 1, 60, 0.0) == 0
    assert len(kept._tries) == 50
    assert kept.wait(("try", "address", "499"), 1, 60, 1.0) == 59


@pytest.mark.parametrize(
    ("action", "address", "fields"),
    [
        ("sign in", "/people/sign-in", {"name": "Nobody", "password": "x" * 201}),
        ("join", "/join/none", {"name": "Nobody", "password": "x"}),
        ("vote", "/papers/galore/vote", {"up": "true"}),
        ("comment", "/papers/galore/comments", {"text": ""}),
        ("invite", "/people/invite", {"name": ""}),
    ],
)
def test_too_many_tries_get_429_with_the_time_to_wait(app, monkeypatch, action, address, fields):
    monkeypatch.setitem(ALLOWED, action, ((3, 110), (3, 110)))
    client = signed_in(app, "Olga", "owner")
    data = {"csrf": form_token(client), **fields}
    if action == "sign in":
        data["password"] = "too short"
    codes = [client.post(address, data=data).status_code for _ in range(3)]
    assert 429 not in codes
    answer = client.post(address, data=data)
    assert answer.status_code == 429 and 1 <= int(answer.headers["retry-after"]) <= 110
    assert re.search(rf"too many tries to {action}: wait \d+ seconds", answer.text)
    assert client.get("/papers").status_code == 200


@pytest.mark.parametrize("path", ["/papers/galore/comments", "/comments/{}/edit"])
def test_a_comment_that_comes_too_soon_is_not_lost(app, monkeypatch, path):
    ada = signed_in(app, "Ada")
    path = path.format(write(app.state.database, "galore", ada.person, "the first"))
    monkeypatch.setattr(Limits, "wait", lambda *about: 100.0)
    answer = send(ada, path, text="what I typed\nfor long")
    assert answer.status_code == 429 and answer.headers["retry-after"] == "100"
    assert "what I typed\nfor long</textarea>" in answer.text and f'action="{path}"' in answer.text
    assert "wait 100 seconds" in answer.text
    assert [row["text"] for row in app.state.database.rows("SELECT text FROM comments")] == ["the first"]


def test_an_account_is_limited_from_all_addresses_together(app, monkeypatch):
    monkeypatch.setitem(ALLOWED, "sign in", ((100, 3600), (2, 3600)))
    codes = []
    for name, address in (("Ada", "10.0.0.1"), ("ADA", "10.0.0.2"), ("ada", "10.0.0.3"), ("Bob", "10.0.0.3")):
        client = browser(app, client=(address, 5000))
        codes.append(send(client, "/people/sign-in", name=name, password="x").status_code)
    assert codes == [401, 401, 429, 401]


def test_an_ipv6_network_counts_as_one_address_and_ipv4_as_many(app, monkeypatch):
    monkeypatch.setitem(ALLOWED, "join", ((1, 3600), (9, 3600)))

    def code(address):
        return browser(app, client=(address, 5000)).get("/join/none").status_code

    assert [code("2001:db8::1"), code("2001:db8::2"), code("2001:db8:0:1::1")] == [404, 429, 404]
    assert [code("10.0.0.1"), code("10.0.0.2"), code("10.0.0.1")] == [404, 404, 429]


def test_a_header_does_not_make_another_address(app, monkeypatch):
    monkeypatch.setitem(ALLOWED, "join", ((1, 3600), (9, 3600)))
    client = browser(app)
    codes = [client.get("/join/none", headers={"X-Forwarded-For": f"10.0.0.{n}"}).status_code for n in (1, 2)]
    assert codes == [404, 429]


@pytest.mark.parametrize(("proxy", "last"), [((), 429), (("--proxy", "127.0.0.1"), 404)])
def test_the_served_desk_believes_a_proxy_only_if_it_is_named(tmp_path, proxy, last):
    arguments = ["desk", "--port", "0", "--data", str(tmp_path), *proxy]
    served = subprocess.Popen(
        [sys.executable, "-u", "-m", "thalweg", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        base = re.search(r"http://[\d.]+:\d+", served.stdout.readline())[0]
        most = ALLOWED["join"][0][0]
        codes = [
            httpx.get(
                f"{base}/join/none", headers={"X-Forwarded-For": f"10.0.0.{n}"}, timeout=240
            ).status_code
            for n in range(1, most + 2)
        ]
        assert codes == [404] * most + [last]
    finally:
        served.terminate()
        _, said = served.communicate()
    assert said == "", "nothing about requests is written"
