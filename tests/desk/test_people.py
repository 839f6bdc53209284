"""Invitations, names and passwords: what holds, what does not, and what is kept of a secret."""

from __future__ import annotations

import hashlib
import html
import re
import threading
import time

import pytest
from typer.testing import CliRunner

from desk_people import PASSWORD, browser, form_token, person, send, signed_in
from thalweg.cli import app as command
from thalweg.desk import people
from thalweg.desk.app import create_app
from thalweg.desk.database import Database
from thalweg.desk.passwords import hash_password, password_fits


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


@pytest.fixture
def database(app):
    return app.state.database


def test_a_link_lets_somebody_in_once(app, database):
    link = f"/join/{people.invite(database, 'Ada')}"
    client = browser(app)
    assert 'value="Ada"' in client.get(link).text
    answer = send(client, link, name="Ada L.", password=PASSWORD)
    assert (answer.status_code, answer.headers["location"]) == (303, "/account")
    assert "Ada L." in client.get("/papers").text
    assert [(one.name, one.role) for one in people.everyone(database)] == [("Ada L.", "member")]
    again = browser(app)
    assert again.get(link).status_code == 404
    assert send(again, link, name="Eve", password=PASSWORD).status_code == 404
    assert len(people.everyone(database)) == 1


def test_of_two_who_use_a_link_at_once_one_is_let_in(database):
    token, outcomes = people.invite(database, "Ada"), []

    def use(name):
        try:
            outcomes.append(people.join(database, token, name, PASSWORD).name)
        except ValueError as error:
            outcomes.append(str(error))

    both = [threading.Thread(target=use, args=(name,)) for name in ("one", "two")]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(people.everyone(database)) == 1
    assert sum("was used" in one for one in outcomes) == 1


def test_an_invitation_ends_after_a_week(database, monkeypatch):
    token, now = people.invite(database, "Ada"), time.time()
    monkeypatch.setattr(people.time, "time", lambda: now + 7 * 86400 - 5)
    assert people.invitation(database, token).name == "Ada"
    monkeypatch.setattr(people.time, "time", lambda: now + 7 * 86400 + 5)
    assert people.invitation(database, token) is None
    with pytest.raises(ValueError, match="expired"):
        people.join(database, token, "Ada", PASSWORD)


def test_a_second_invitation_for_a_name_ends_the_first(database):
    first, second = people.invite(database, "Ada"), people.invite(database, "ADA", "moderator")
    assert people.invitation(database, first) is None
    assert people.invitation(database, second).role == "moderator"


@pytest.mark.parametrize("name", ["", "   ", "x" * 41, "a\x00b", "a\u202eb", "a\u200bb", "\ue000"])
def test_a_name_shows_what_it_is(database, name):
    with pytest.raises(ValueError, match="the name must"):
        people.invite(database, name)


@pytest.mark.parametrize("other", ["ada", "ADA", " Ada ", "Ａｄａ"])
def test_names_that_read_alike_are_one(app, database, other):
    person(app, "Ada")
    with pytest.raises(ValueError, match="is taken"):
        people.invite(database, other)
    token = people.invite(database, "Grace")
    with pytest.raises(ValueError, match="is taken"):
        people.join(database, token, other, PASSWORD)
    assert people.invitation(database, token), "a wrong name does not use the link up"


def test_a_short_password_or_one_that_is_the_name_is_refused_on_the_form(app, database):
    link, client = f"/join/{people.invite(database, 'Ada Lovelace')}", browser(app)
    for password, why in (("short", "10 to 200"), ("ada lovelace", "must differ")):
        answer = send(client, link, name="Ada Lovelace", password=password)
        assert answer.status_code == 422 and why in answer.text and password + '"' not in answer.text
        described = re.search(r'type="password"[^>]*aria-describedby="([^"]+)"', answer.text)[1].split()
        assert {"wrong", "long"} <= set(described) and all(f'id="{one}"' in answer.text for one in described)
    assert not people.anyone(database)


def test_a_password_is_scrypt_with_its_own_salt():
    first, second = hash_password(PASSWORD), hash_password(PASSWORD)
    assert first != second
    _, cost, block, lanes, salt, kept = first.split("$")
    derived = hashlib.scrypt(
        PASSWORD.encode(),
        salt=bytes.fromhex(salt),
        n=2 ** int(cost),
        r=int(block),
        p=int(lanes),
        maxmem=1 << 30,
    )
    assert bytes.fromhex(kept) == derived[:32] and int(cost) >= 15
    assert password_fits(PASSWORD, first) and not password_fits(PASSWORD + "r", first)
    assert password_fits("pässword long", hash_password("pa\u0308ssword long"))


def test_an_unknown_name_costs_one_derivation_as_a_wrong_password_does(app, database, monkeypatch):
    person(app, "Ada")
    costs = []
    derive = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *a, **more: costs.append(more) or derive(*a, **more))
    assert people.recognise(database, "Ada", "a wrong password") is None
    assert people.recognise(database, "Nobody", "a wrong password") is None
    known, unknown = ({key: one[key] for key in ("n", "r", "p")} for one in costs)
    assert known == unknown


def test_wrong_name_and_wrong_password_have_one_answer(app):
    person(app, "Ada")
    client = browser(app)
    answers = [send(client, "/people/sign-in", name=name, password="a wrong one") for name in ("Ada", "Eve")]
    texts = [re.sub(r'value="[^"]*"', "", one.text) for one in answers]
    assert texts[0] == texts[1] and [one.status_code for one in answers] == [401, 401]


def test_a_new_password_ends_every_session_and_the_old_password(app, database):
    ada, elsewhere = signed_in(app, "Ada"), browser(app)
    send(elsewhere, "/people/sign-in", name="Ada", password=PASSWORD)
    wrong = send(ada, "/account/password", password="not the one", new="another password")
    assert wrong.status_code == 422 and "present password is not right" in wrong.text
    assert send(ada, "/account/password", password=PASSWORD, new="another password").status_code == 303
    assert ada.get("/account").status_code == 200
    assert elsewhere.get("/account").status_code == 303
    assert people.recognise(database, "Ada", PASSWORD) is None
    assert people.recognise(database, "ada", "another password").name == "Ada"


def test_who_is_removed_is_signed_out_and_their_comments_stay_without_a_name(app, database):
    owner, ada = signed_in(app, "Olga", "owner"), signed_in(app, "Zaphod")
    send(ada, "/papers/galore/comments", text="a remark that stays")
    send(ada, "/papers/galore/vote", up="true")
    assert send(owner, f"/people/{ada.person.id}/remove").status_code == 303
    assert ada.get("/account").status_code == 303
    text = browser(app).get("/papers/galore").text
    assert "a remark that stays" in text and "Somebody who left" in text and "Zaphod" not in text
    assert database.rows("SELECT * FROM votes") == []


def test_a_new_role_holds_at_once_where_somebody_is_signed_in(app, database):
    owner, ada, bob = signed_in(app, "Olga", "owner"), signed_in(app, "Ada"), signed_in(app, "Bob")
    send(bob, "/papers/galore/comments", text="a remark that goes")

    def taken_away():
        (id,) = database.rows("SELECT id FROM comments")[0]
        return send(ada, f"/comments/{id}/delete").status_code

    assert taken_away() == 403
    assert send(owner, f"/people/{ada.person.id}/role", role="moderator").status_code == 303
    assert f'action="/people/{ada.person.id}/role"' in owner.get("/people").text
    assert f'action="/people/{owner.person.id}/role"' not in owner.get("/people").text
    assert taken_away() == 303
    send(owner, f"/people/{ada.person.id}/role", role="owner")
    send(ada, f"/people/{owner.person.id}/role", role="member")
    assert (ada.get("/people").status_code, owner.get("/people").status_code) == (200, 403)


def test_a_role_that_is_none_changes_nothing(app, database):
    owner, ada = signed_in(app, "Olga", "owner"), person(app, "Ada")
    answer = send(owner, f"/people/{ada.id}/role", role="king")
    assert answer.status_code == 422
    assert "role must be one of member, moderator, owner" in html.unescape(answer.text)
    assert owner.post(f"/people/{ada.id}/role", data={"role": "owner"}).status_code == 403
    assert people.named(database, "Ada") == ada


def test_an_owner_gets_a_link_that_is_shown_once_and_works(app, database):
    owner = signed_in(app, "Olga", "owner")
    answer = send(owner, "/people/invite", name="Grace", role="moderator")
    link = re.search(r"http://testserver(/join/[\w-]+)", answer.text)[1]
    assert link not in owner.get("/people").text
    assert send(browser(app), link, name="Grace", password=PASSWORD).status_code == 303
    assert people.named(database, "grace").role == "moderator"
    assert send(owner, "/people/invite", name="GRACE").status_code == 422


def test_no_secret_is_in_the_file(app, database, tmp_path):
    client = browser(app)
    token = people.invite(database, "Ada")
    send(client, f"/join/{token}", name="Ada", password=PASSWORD)
    unused, session = people.invite(database, "Grace"), client.cookies["thalweg_session"]
    form = form_token(client)
    kept = b"".join(one.read_bytes() for one in tmp_path.glob("desk.sqlite*"))
    assert b"Grace" in kept
    for secret in (token, unused, session, PASSWORD, form.partition(".")[2]):
        assert secret.encode() not in kept


PUBLIC = ("--public", "https://desk.example")


def desk(tmp_path, *arguments):
    return CliRunner().invoke(command, ["desk", *arguments, "--data", str(tmp_path)])


def test_the_command_line_invites_lists_renews_promotes_and_removes(tmp_path):
    assert "read-only" in desk(tmp_path, "people").stdout
    said = desk(tmp_path, "invite", "Ada", "--role", "owner", "--address", "https://desk.example/")
    token = re.match(r"https://desk.example/join/([\w-]+)\n", said.stdout)[1]
    database = Database(tmp_path)
    people.join(database, token, "Ada", PASSWORD)
    assert re.search(r"Ada +owner", desk(tmp_path, "people").stdout)
    renewed = re.search(r"/join/([\w-]+)", desk(tmp_path, "invite", "ada", "--new-password", *PUBLIC).stdout)[
        1
    ]
    people.join(database, renewed, "ignored", "another password")
    assert [one.name for one in people.everyone(database)] == ["Ada"]
    assert people.recognise(database, "Ada", "another password")
    assert desk(tmp_path, "role", "ada", "moderator").stdout == "Ada is moderator now; was owner\n"
    assert people.named(database, "Ada").role == "moderator"
    wrong = desk(tmp_path, "role", "Adda", "owner")
    assert wrong.exit_code == 2 and "nobody has the name 'Adda' (did you mean Ada?)" in wrong.stderr
    wrong = desk(tmp_path, "role", "Ada", "king")
    assert wrong.exit_code == 2 and "role must be one of member, moderator, owner" in wrong.stderr
    assert people.named(database, "Ada").role == "moderator"
    assert "removed Ada" in desk(tmp_path, "remove", "ADA").stdout
    assert not people.anyone(database)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("invite", "Ada", "--role", "king", *PUBLIC), "role must be one of member, moderator, owner"),
        (("invite", "", *PUBLIC), "the name must have 1 to 40 characters"),
        (("invite", "Ada", "--address", "ftp://x"), "must be like https://"),
        (("invite", "Ada"), "no desk runs over"),
        (("invite", "Eve", "--new-password", *PUBLIC), "nobody has the name 'Eve'"),
        (("role", "Eve", "owner"), "nobody has the name 'Eve'"),
        (("remove", "Eve"), "nobody has the name 'Eve'"),
    ],
)
def test_a_wrong_command_is_one_line(tmp_path, arguments, why):
    said = desk(tmp_path, *arguments)
    assert said.exit_code == 2 and why in said.stderr and said.stderr.count("\n") == 1
