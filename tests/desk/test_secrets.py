"""Passwords, tokens and mail addresses are in no log and on no page that is not theirs."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from desk_people import PASSWORD, browser
from thalweg.desk.app import create_app
from thalweg.desk.database import Database
from thalweg.desk.people import invite, prepare

ADDRESS = "ada.lovelace@example.org"
WRONG = "not the password at all"
# The test's own client and its mail server.
OTHERS = ("httpx", "httpx2", "httpcore", "mail", "asyncio")


def field(text, name):
    return re.search(rf'name="{name}" value="([^"]+)"', text)[1]


def whole_flow(client, database, post_office):
    """Join, sign out, fail and succeed to sign in, subscribe and confirm; every secret that was used."""
    token = invite(database, "Ada")
    secrets = [token, PASSWORD, WRONG, ADDRESS, ADDRESS.partition("@")[0]]

    def fill(address, action=None, **fields):
        token = field(client.get(address).text, "csrf")
        secrets.append(token)
        answer = client.post(action or address, data={"csrf": token, **fields})
        secrets.extend(client.cookies.values())
        return answer

    assert fill(f"/join/{token}", name="Ada", password="short").status_code == 422
    assert fill(f"/join/{token}", name="Ada", password=PASSWORD).status_code == 303
    assert fill("/account", "/account/password", password=WRONG, new=PASSWORD).status_code == 422
    assert fill("/account", "/people/sign-out").status_code == 303
    assert fill("/people/sign-in", name="Ada", password=WRONG).status_code == 401
    assert fill("/people/sign-in", name="Ada", password=PASSWORD).status_code == 303
    assert fill("/account", "/papers/galore/comments", text="A remark").status_code == 303
    assert client.post("/people/sign-in", data={"password": PASSWORD * 30}).status_code == 403
    long = fill("/account", "/people/sign-in", name="Ada", password=PASSWORD * 30)
    assert long.status_code == 422 and PASSWORD not in long.text
    answer = fill("/subscribe", email=ADDRESS, topic="gradient spikes", every="daily")
    assert answer.status_code == 200
    assert post_office.came.wait(120), "the mail goes out after the answer"
    text = post_office.messages[0].get_body(("plain",)).get_content()
    path = re.search(r"/subscriptions/confirm/\S+", text)[0]
    secrets.append(path.rpartition("/")[2])
    assert fill(path).status_code in (200, 303)
    return [one for one in secrets if one]


@pytest.fixture
def mail(post_office, monkeypatch):
    monkeypatch.setenv("THALWEG_MAIL_HOST", "127.0.0.1")
    monkeypatch.setenv("THALWEG_MAIL_PORT", str(post_office.port))
    monkeypatch.setenv("THALWEG_MAIL_SECURITY", "none")
    monkeypatch.setenv("THALWEG_MAIL_FROM", "Desk <desk@example.org>")
    return post_office


def test_the_served_desk_writes_none_of_it(tmp_path, mail):
    command = [sys.executable, "-m", "thalweg", "desk", "--port", "0", "--data", str(tmp_path)]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [*command, "--public", "http://127.0.0.1:1"],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        base = re.search(r"http://[\d.]+:\d+", process.stdout.readline())[0]
        database = Database(tmp_path)
        prepare(database)
        with httpx.Client(base_url=base, timeout=240) as client:
            secrets = whole_flow(client, database, mail)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate()
    written = (tmp_path / "said").read_text() + rest
    assert len(secrets) > 20
    assert [one for one in secrets if one in written] == []


def test_not_even_at_the_finest_level_of_logging(tmp_path, mail, caplog):
    caplog.set_level(logging.DEBUG)
    app = create_app(folder=tmp_path, public="http://testserver")
    client = browser(app)
    secrets = whole_flow(client, app.state.database, mail)
    written = "\n".join(
        f"{one.name}: {one.getMessage()} {one.exc_text or ''}"
        for one in caplog.records
        if one.name.partition(".")[0] not in OTHERS
    )
    assert [one for one in secrets if one in written] == []
    shown = client.get("/health").text + client.get("/api/health").text + client.get("/api/openapi.json").text
    assert [one for one in secrets if one in shown] == []


def test_a_failure_is_reported_without_the_address_that_failed(tmp_path):
    app = create_app(folder=tmp_path)
    client, token = browser(app), invite(app.state.database, "Ada")
    with app.state.database.write() as on:
        on.execute("DROP TABLE invitations")
    assert client.get(f"/join/{token}").status_code == 503
    shown = client.get("/health").text
    assert "/join/{token}" in shown and token not in shown


def test_an_error_repeats_nothing_that_was_sent(tmp_path):
    client = browser(create_app(folder=tmp_path))
    token = field(client.get("/people/sign-in").text, "csrf")
    for fields in ({"name": "n" * 300}, {"password": PASSWORD * 30}, {"next": "/" + "x" * 3000}):
        answer = client.post("/people/sign-in", data={"csrf": token, **fields})
        assert answer.status_code == 422
        assert not any(value in answer.text for value in fields.values())
