"""Votes, comments and subscriptions to papers of the catalog go on where imported papers cannot be read."""

from __future__ import annotations

import pytest

from desk_people import send, signed_in
from thalweg.desk.app import create_app
from thalweg.desk.counts import counts
from thalweg.desk.imported import checked

OTHER = {"id": "2601.00002", "title": "Gradient spikes, a paper from outside", "published": "2026-01-02"}


@pytest.fixture(params=["library", "labels", "imported"])
def app(tmp_path, request):
    """A desk whose papers from outside were lost since it was started."""
    app = create_app(folder=tmp_path)
    app.state.shelf.library.add([checked(OTHER)])
    with app.state.database.write() as on:
        on.execute("PRAGMA defer_foreign_keys = ON")
        on.execute(f"DROP TABLE {request.param}")
    return app


def test_a_vote_and_a_comment_on_a_paper_of_the_catalog_count(app):
    client = signed_in(app, "Ada")
    assert send(client, "/papers/galore/vote", up="true").status_code == 303
    assert send(client, "/papers/2403.03507/comments", text="It holds.").status_code == 303
    assert counts(app.state.database, ["galore"]) == {"galore": (1, 1)}
    assert any("imported papers cannot be read" in one.what for one in app.state.problems.all())


def test_what_the_catalog_lacks_may_be_there_and_is_refused_for_now(app):
    client = signed_in(app, "Ada")
    answer = send(client, "/papers/2601.00002/vote", up="true")
    assert answer.status_code == 503
    assert counts(app.state.database, ["2601.00002"]) == {"2601.00002": (0, 0)}


def test_a_subscription_to_a_topic_of_the_catalog_is_taken(app, monkeypatch):
    monkeypatch.setenv("THALWEG_MAIL_HOST", "127.0.0.1")
    monkeypatch.setenv("THALWEG_MAIL_PORT", "9")
    monkeypatch.setenv("THALWEG_MAIL_FROM", "Desk <desk@example.org>")
    monkeypatch.setenv("THALWEG_PUBLIC_URL", "https://desk.example.org")
    client = signed_in(app, "Ada")
    asked = send(client, "/subscribe", email="ada@example.org", topic="loss spikes", every="daily")
    assert asked.status_code == 200
    (row,) = app.state.database.rows("SELECT wants FROM subscription_requests")
    assert "loss spikes" in row["wants"]
