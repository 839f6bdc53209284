"""Forms of other sites change nothing: every route that could is tried, with every kind of wrong token."""

from __future__ import annotations

import re

import pytest

from desk_people import browser, form_token, person, send, signed_in
from thalweg._core.discover import modules
from thalweg.desk.app import create_app

CHANGING = {"POST", "PUT", "PATCH", "DELETE"}


def changing_routes():
    """Address and method of every route that could change something, with its endpoint."""
    return [
        pytest.param(route, method, id=f"{method} {route.path}")
        for module in modules("thalweg.desk")
        for route in getattr(getattr(module, "router", None), "routes", ())
        for method in sorted(route.methods & CHANGING)
    ]


def address_of(route):
    return re.sub(r"\{\w*?name\w*\}", "galore", re.sub(r"\{(id|run)(:\w+)?\}", "1", route.path)).replace(
        "{token}", "x"
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    made = create_app(folder=tmp_path_factory.mktemp("csrf"))
    person(made, "Victim")
    return made


@pytest.fixture(scope="module")
def ada(app):
    return signed_in(app, "Ada", "owner")


def upvotes(app):
    return app.state.database.rows("SELECT count(*) FROM votes")[0][0]


def test_what_needs_no_token_is_known_and_says_why():
    free = {
        param.values[0].path: param.values[0].endpoint.unchecked
        for param in changing_routes()
        if hasattr(param.values[0].endpoint, "unchecked")
    }
    assert set(free) <= {"/subscriptions/{secret}/unsubscribe"}, (
        "a route without a token has to be listed here"
    )
    assert all("secret" in why for why in free.values())


CHECKED = [one for one in changing_routes() if not hasattr(one.values[0].endpoint, "unchecked")]


@pytest.mark.parametrize(("route", "method"), CHECKED)
def test_every_route_that_changes_something_refuses_a_form_without_a_token(app, ada, route, method):
    answer = ada.request(method, address_of(route), data={"up": "true", "text": "hello", "name": "Eve"})
    assert answer.status_code == 403 and "this form has expired" in answer.text


def test_a_form_of_the_desk_itself_goes_through(app, ada):
    before = upvotes(app)
    assert send(ada, "/papers/galore/vote", up="true").status_code == 303
    assert upvotes(app) == before + 1
    header = {"X-CSRF-Token": form_token(ada)}
    assert ada.post("/papers/galore/vote", data={"up": "false"}, headers=header).status_code == 303
    assert upvotes(app) == before


@pytest.mark.parametrize("kind", ["empty", "made up", "of another session", "of a reader", "changed", "half"])
def test_a_token_that_is_not_theirs_is_refused(app, ada, kind):
    token = {
        "empty": lambda: "",
        "made up": lambda: "0" * 16 + "." + "0" * 64,
        "of another session": lambda: form_token(signed_in(app, f"Eve {kind}")),
        "of a reader": lambda: form_token(browser(app)),
        "changed": lambda: "f" + form_token(ada)[1:] if form_token(ada)[0] != "f" else "0",
        "half": lambda: form_token(ada).partition(".")[2],
    }[kind]()
    before = upvotes(app)
    answer = ada.post("/papers/spam/vote", data={"csrf": token, "up": "true"})
    assert answer.status_code == 403 and upvotes(app) == before


def test_a_token_ends_with_the_session_it_was_made_for(app):
    client = signed_in(app, "Grace")
    old = form_token(client)
    send(client, "/people/sign-out")
    fields = {"csrf": old, "name": "Grace", "password": "x"}
    assert client.post("/people/sign-in", data=fields).status_code == 403


def test_a_readers_form_needs_the_cookie_that_came_with_it(app):
    reader, other = browser(app), browser(app)
    token = form_token(reader)
    fields = {"csrf": token, "name": "Nobody", "password": "x"}
    assert reader.post("/people/sign-in", data=fields).status_code == 401
    assert other.post("/people/sign-in", data=fields).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver.evil.example"},
        {"Origin": "http://testserver:8080"},
        {"Origin": "http://[not an address"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_even_with_the_right_token_another_site_is_refused(app, ada, headers):
    before = upvotes(app)
    answer = send(ada, "/papers/spam/vote", headers, up="true")
    assert answer.status_code == 403 and "another site" in answer.text and upvotes(app) == before


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"},
        {"Origin": "https://testserver"},
        {},
    ],
)
def test_the_desks_own_pages_are_not_taken_for_another_site(ada, headers):
    assert send(ada, "/papers/spam/vote", headers, up="false").status_code == 303


def test_behind_a_proxy_the_public_address_is_the_desks_own(tmp_path):
    app = create_app(folder=tmp_path, public="https://desk.example")
    client = browser(app, base_url="https://internal:9000")
    token = re.search(r'name="csrf" value="([^"]+)"', client.get("/people/sign-in").text)[1]
    fields = {"csrf": token, "name": "Nobody", "password": "x"}
    for origin, code in (("https://desk.example", 401), ("https://evil.example", 403)):
        answer = client.post("/people/sign-in", data=fields, headers={"Origin": origin})
        assert answer.status_code == code


def test_a_body_that_is_no_form_is_refused(ada):
    for content, kind in (
        (b'{"csrf": "x"}', "application/json"),
        (b"\xff\x00", "multipart/form-data; boundary=x"),
    ):
        answer = ada.post("/papers/galore/vote", content=content, headers={"Content-Type": kind})
        assert answer.status_code in (400, 403)
