"""Sessions: what the cookie is like, when it changes, and when it ends."""

from __future__ import annotations

import time
from http.cookies import SimpleCookie

import pytest

from desk_people import PASSWORD, browser, carry, form_token, person, send, signed_in
from thalweg.desk import sessions
from thalweg.desk.app import create_app


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


def enter(client, name="Ada"):
    return send(client, "/people/sign-in", name=name, password=PASSWORD)


def cookies(answer):
    return {
        name: one
        for line in answer.headers.get_list("set-cookie")
        for name, one in SimpleCookie(line).items()
    }


def test_the_cookies_are_for_the_server_alone_and_not_for_other_sites(app):
    person(app, "Ada")
    client = browser(app)
    found = cookies(client.get("/people/sign-in")) | cookies(enter(client))
    assert set(found) == {"thalweg_form", "thalweg_session"}
    for one in found.values():
        assert one["httponly"] and one["samesite"] == "lax" and one["path"] == "/" and not one["secure"]
        assert not one["domain"] and int(one["max-age"]) <= 30 * 86400


@pytest.mark.parametrize(
    ("seen", "public"), [("https://testserver", None), ("http://testserver", "https://desk.example")]
)
def test_over_https_they_are_secure_and_bound_to_the_host(tmp_path, seen, public):
    app = create_app(folder=tmp_path, public=public)
    person(app, "Ada")
    client = browser(app, base_url=seen)
    page = client.get("/people/sign-in")
    for name, one in cookies(page).items():
        assert name == "__Host-thalweg_form" and one["secure"] and one["path"] == "/" and not one["domain"]
        client.cookies = None
        brought = {"cookie": f"{name}={one.value}"}
    token = page.text.split('name="csrf" value="')[1].split('"')[0]
    fields = {"csrf": token, "name": "Ada", "password": PASSWORD}
    answer = client.post("/people/sign-in", data=fields, headers=brought)
    assert answer.status_code == 303
    assert cookies(answer)["__Host-thalweg_session"]["secure"]


def test_a_reader_gets_no_cookie_before_a_form(app):
    client = browser(app)
    for address in ("/papers", "/papers/galore", "/search?q=spike", "/api/daily_papers"):
        assert "set-cookie" not in client.get(address).headers


def test_signing_in_takes_no_token_over_and_ends_the_one_that_was_brought(app):
    person(app, "Ada")
    person(app, "Eve")
    client, eve = browser(app), browser(app)
    carry(client, "chosen-by-somebody-else")
    assert enter(client).status_code == 303
    fixed = browser(app)
    carry(fixed, "chosen-by-somebody-else")
    assert fixed.get("/account").status_code == 303
    # Eve plants her own session in Ada's browser; Ada signs in; Eve's token is worth nothing then.
    enter(eve, "Eve")
    planted = eve.cookies["thalweg_session"]
    victim = browser(app)
    carry(victim, planted)
    enter(victim)
    assert eve.get("/account").status_code == 303
    assert victim.cookies["thalweg_session"] != planted


def test_every_sign_in_has_its_own_token(app):
    person(app, "Ada")
    tokens = set()
    for _ in range(3):
        client = browser(app)
        enter(client)
        tokens.add(client.cookies["thalweg_session"])
    assert len(tokens) == 3 and all(len(one) >= 43 for one in tokens)


def test_signing_out_ends_the_session_on_the_desk_not_only_in_the_browser(app):
    client = signed_in(app, "Ada")
    token = client.cookies["thalweg_session"]
    answer = send(client, "/people/sign-out")
    assert cookies(answer)["thalweg_session"]["max-age"] == "0"
    thief = browser(app)
    carry(thief, token)
    assert thief.get("/account").status_code == 303


def test_one_session_or_all_can_be_ended_from_the_account(app):
    person(app, "Ada")
    here, there, third = browser(app), browser(app), browser(app)
    for one in (here, there, third):
        enter(one)
    ids = [row[0] for row in app.state.database.rows("SELECT id FROM sessions ORDER BY id")]
    send(here, "/account/sign-out", session=str(ids[1]))
    assert [one.get("/account").status_code for one in (here, there, third)] == [200, 303, 200]
    send(here, "/account/sign-out")
    assert [one.get("/account").status_code for one in (here, there, third)] == [303, 303, 303]


def test_a_session_ends_after_thirty_days_whatever_is_done_in_them(app, monkeypatch):
    person(app, "Ada")
    first, client, now = browser(app), browser(app), time.time()
    enter(first)
    # A browser that forgets nothing: it is the desk that ends the session.
    carry(client, first.cookies["thalweg_session"])
    monkeypatch.setattr(sessions.time, "time", lambda: now + 30 * 86400 - 60)
    assert client.get("/account").status_code == 200
    monkeypatch.setattr(sessions.time, "time", lambda: now + 30 * 86400 + 60)
    assert client.get("/account").status_code == 303


def test_sessions_and_form_tokens_outlive_a_restart(tmp_path):
    client = signed_in(create_app(folder=tmp_path), "Ada")
    token = form_token(client)
    after = browser(create_app(folder=tmp_path))
    after.cookies = client.cookies
    assert after.post("/papers/galore/vote", data={"csrf": token, "up": "true"}).status_code == 303


def test_pages_are_not_kept_for_others(app):
    client = signed_in(app, "Ada")
    for address in ("/papers", "/account", "/nothing"):
        assert "private" in client.get(address).headers["cache-control"]
