"""Who may do what: every role tries every action, and the documentation says the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from desk_people import browser, person, send, signed_in
from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.database import Database
from thalweg.desk.people import named
from thalweg.desk.rights import RIGHTS

ROLES = ("reader", "member", "moderator", "owner")
# Written down a second time, so that a change of the table is a change of this line too.
ALLOWED = {
    "read": "reader member moderator owner",
    "subscribe": "reader member moderator owner",
    "vote": "member moderator owner",
    "comment": "member moderator owner",
    "edit their own comment": "member moderator owner",
    "delete their own comment": "member moderator owner",
    "remove another's comment": "moderator owner",
    "invite": "owner",
    "change a role": "owner",
    "remove a person": "owner",
}
# Nobody may do these, whatever their role.
NEVER = (
    "edit another's comment",
    "vote for another",
    "change their own role",
    "remove themselves",
    "see another's sessions",
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    return create_app(folder=tmp_path_factory.mktemp("rights"))


@pytest.fixture(scope="module")
def browsers(app):
    return {role: browser(app) if role == "reader" else signed_in(app, f"a {role}", role) for role in ROLES}


@pytest.fixture(scope="module")
def others(app):
    return person(app, "somebody else")


def tried(app, client, others, action):
    """The answer to an attempt, and whether the desk's data are as after the action."""
    database, own = app.state.database, getattr(client, "person", others)
    theirs, mine = (write(database, "galore", one, f"words of {one.name}") for one in (others, own))

    def text(id):
        return database.rows("SELECT text FROM comments WHERE id = ?", (id,))[0][0]

    def count(table):
        return database.rows(f"SELECT count(*) FROM {table}")[0][0]

    match action:
        case "read":
            answer = client.get("/papers/galore")
            return answer, "words of somebody else" in answer.text
        case "vote":
            before = count("votes")
            answer = send(client, "/papers/spam/vote", up="true")
            return answer, count("votes") == before + 1
        case "comment":
            before = count("comments")
            answer = send(client, "/papers/spam/comments", text=f"new words {before}")
            return answer, count("comments") == before + 1
        case "edit their own comment":
            answer = send(client, f"/comments/{mine}/edit", text="other words")
            return answer, text(mine) == "other words"
        case "edit another's comment":
            answer = send(client, f"/comments/{theirs}/edit", text="other words")
            return answer, text(theirs) == "other words"
        case "delete their own comment":
            answer = send(client, f"/comments/{mine}/delete")
            return answer, text(mine) == ""
        case "remove another's comment":
            answer = send(client, f"/comments/{theirs}/delete")
            return answer, text(theirs) == ""
        case "invite":
            before = count("invitations")
            answer = send(client, "/people/invite", name=f"guest of {own.name}", role="member")
            return answer, count("invitations") == before + 1
        case "change a role":
            raised = person(app, f"to be raised by {own.name}")
            answer = send(client, f"/people/{raised.id}/role", role="moderator")
            return answer, named(database, raised.name).role == "moderator"
        case "change their own role":
            answer = send(
                client, f"/people/{own.id}/role", role="moderator" if own.role == "owner" else "owner"
            )
            return answer, named(database, own.name).role != own.role
        case "remove a person":
            victim = person(app, f"in the way of {own.name}")
            before = count("people")
            answer = send(client, f"/people/{victim.id}/remove")
            return answer, count("people") == before - 1
        case "remove themselves":
            before = count("people")
            answer = send(client, f"/people/{own.id}/remove")
            return answer, count("people") == before - 1
        case "vote for another":
            answer = send(client, "/papers/lion/vote", up="true", person=str(others.id))
            mine = database.rows("SELECT person FROM votes WHERE paper = 'lion'")
            return answer, any(row[0] == others.id for row in mine)
        case "see another's sessions":
            session = signed_in(app, f"watched by {own.name}")
            id = database.rows("SELECT max(id) FROM sessions")[0][0]
            answer = send(client, "/account/sign-out", session=str(id))
            return answer, session.get("/account").status_code != 200
    raise AssertionError(action)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("action", [one for one in ALLOWED if one != "subscribe"])
def test_a_role_may_do_what_the_table_says_and_no_more(app, browsers, others, role, action):
    answer, done = tried(app, browsers[role], others, action)
    allowed = role in ALLOWED[action].split()
    assert done == allowed
    assert answer.status_code in ((200, 303) if allowed else (401,) if role == "reader" else (403,))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("action", NEVER)
def test_nobody_may_act_on_what_is_anothers(app, browsers, others, role, action):
    assert not tried(app, browsers[role], others, action)[1]


def test_the_code_and_the_documentation_have_the_same_table():
    assert {action: set(roles) for action, roles in RIGHTS.items()} == {
        action: set(roles.split()) for action, roles in ALLOWED.items()
    }
    docs = Path(__file__).parents[2] / "docs" / "desk.md"
    rows = re.findall(r"^\| ([a-z' ]+) \|((?: (?:yes|no) \|){4})$", docs.read_text(encoding="utf8"), re.M)
    written = {
        action: {role for role, cell in zip(ROLES, cells.split("|"), strict=False) if "yes" in cell}
        for action, cells in rows
    }
    assert written == {action: set(roles) for action, roles in RIGHTS.items()}


def test_without_a_folder_the_desk_is_read_only_for_all():
    client = browser(create_app())
    assert client.get("/papers/galore").status_code == 200
    for address in ("/people/sign-in", "/account", "/people", "/join/x"):
        answer = client.get(address)
        assert answer.status_code in (401, 403), address
        assert "read-only" in answer.text


def _in_the_way(folder):
    folder.write_text("no folder")


def _newer(folder):
    with Database(folder).write() as on:
        on.execute("INSERT OR REPLACE INTO schemas VALUES ('people', 99)")


def _no_database(folder):
    folder.mkdir()
    (folder / "desk.sqlite").write_text("nothing that SQLite reads" * 99)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_in_the_way, "File exists"),
        (_newer, "desk.sqlite was written by a newer thalweg: people is at version 99"),
        (_no_database, "file is not a database"),
    ],
)
def test_a_folder_that_cannot_be_used_is_why_the_desk_is_read_only(tmp_path, spoil, why):
    spoil(tmp_path / "data")
    client = browser(create_app(folder=tmp_path / "data"))
    for address in ("/people/sign-in", "/people"):
        answer = client.get(address)
        assert answer.status_code == 403
        assert f"this desk is read-only: its data cannot be used ({why}" in answer.text
        assert str(tmp_path) not in answer.text
    assert why in client.get("/health").text
