"""An owner stays, also when two of them act on each other at the same moment."""

from __future__ import annotations

import threading

import pytest

from desk_people import person, send, signed_in
from thalweg.desk import people, people_pages
from thalweg.desk.app import create_app
from thalweg.desk.database import Database

ACTS = {
    "role": lambda database, whom, by: people.change_role(database, whom.id, "member", by=by),
    "remove": lambda database, whom, by: people.remove(database, whom.id, by=by),
}


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


@pytest.mark.parametrize("first", ACTS)
@pytest.mark.parametrize("second", ACTS)
def test_of_two_owners_who_act_on_each_other_at_once_one_stays(app, tmp_path, first, second):
    """Both have passed the check of the page before either writes."""
    ada, bob = person(app, "Ada", "owner"), person(app, "Bob", "owner")
    start, outcomes = threading.Barrier(2), []

    def act(name, whom, by):
        database = Database(tmp_path)
        start.wait()
        try:
            ACTS[name](database, whom, by)
            outcomes.append("done")
        except people.NotOwner:
            outcomes.append("refused")

    both = [threading.Thread(target=act, args=one) for one in ((first, bob, ada), (second, ada, bob))]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert sorted(outcomes) == ["done", "refused"]
    assert [one.role for one in people.everyone(app.state.database)].count("owner") == 1


@pytest.mark.parametrize("path", ["role", "remove"])
def test_who_is_no_owner_any_more_is_told_so_and_changes_nothing(app, monkeypatch, path):
    olga, ada = signed_in(app, "Olga", "owner"), person(app, "Ada", "owner")
    stale = olga.person
    people.change_role(app.state.database, stale.id, "member", by=ada)
    monkeypatch.setattr(people_pages, "demand", lambda request, action: stale)
    answer = send(olga, f"/people/{ada.id}/{path}", role="member")
    assert answer.status_code == 403 and "only an owner may do that" in answer.text
    assert people.named(app.state.database, "Ada") == ada
