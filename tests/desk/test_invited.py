"""Who was invited and has not come yet is listed, and a link can be taken back."""

from __future__ import annotations

import re
import time

import pytest
from typer.testing import CliRunner

from desk_people import PASSWORD, browser, person, send, signed_in
from thalweg.cli import app as command
from thalweg.desk import people
from thalweg.desk.app import create_app
from thalweg.desk.invited import open_invitations, withdraw


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


@pytest.fixture
def database(app):
    return app.state.database


def desk(tmp_path, *words):
    return CliRunner().invoke(command, ["desk", "--data", str(tmp_path), *words])


def test_what_was_used_taken_back_or_has_expired_is_not_open(database, monkeypatch):
    used = people.invite(database, "Ada")
    for name in ("Bob", "Cy", "Dora"):
        people.invite(database, name)
    people.join(database, used, "Ada", PASSWORD)
    people.renew(database, "Ada")
    assert withdraw(database, " CY ") and not withdraw(database, "Cy")
    assert [(one.name, one.person) for one in open_invitations(database)] == [
        ("Ada", people.named(database, "Ada").id),
        ("Bob", None),
        ("Dora", None),
    ]
    later = time.time() + people.INVITED_FOR + 5
    monkeypatch.setattr(time, "time", lambda: later)
    assert open_invitations(database) == [] and not withdraw(database, "Bob")


def test_the_command_line_lists_invitations_and_takes_one_back(database, tmp_path):
    token = people.invite(database, "Dora", "moderator")
    assert re.search(r"nobody yet.*invited; .*Dora +moderator +20", desk(tmp_path, "people").stdout, re.S)
    assert "took back the invitation of dora" in desk(tmp_path, "remove", "dora").stdout
    assert people.invitation(database, token) is None
    assert "Dora" not in desk(tmp_path, "people").stdout
    assert "nobody has the name 'Dora'" in desk(tmp_path, "remove", "Dora").stderr


def test_a_link_for_a_new_password_is_no_invitation_to_the_command_line(app, database, tmp_path):
    person(app, "Ada")
    people.renew(database, "Ada")
    said = desk(tmp_path, "people").stdout
    assert "may set a new password by a link: Ada until 20" in said and "takes an invitation" not in said


def test_an_owner_sees_invitations_and_takes_one_back_by_a_button(app, database):
    owner, member = signed_in(app, "Olga", "owner"), signed_in(app, "Max")
    token = people.invite(database, "Dora <b>", "moderator")
    text = owner.get("/people").text
    assert "Dora &lt;b&gt;" in text and "joining as moderator" in text and token not in text
    assert send(member, "/people/withdraw", name="Dora <b>").status_code == 403
    assert owner.post("/people/withdraw", data={"name": "Dora <b>"}).status_code == 403, "without the token"
    assert send(browser(app), "/people/withdraw", name="Dora <b>").status_code == 401
    assert people.invitation(database, token)
    assert send(owner, "/people/withdraw", name="Dora <b>").status_code == 303
    assert people.invitation(database, token) is None and "Dora" not in owner.get("/people").text
