"""Upvotes: one a person a paper, with scripts and without, in lists and the API, and after a SIGKILL."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from desk_people import browser, form_token, send, signed_in
from thalweg.desk.app import create_app
from thalweg.desk.comments import write
from thalweg.desk.counts import counts, most_upvoted
from thalweg.desk.votes import set_vote
from thalweg.papers import load


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


def upvotes(app, key):
    return counts(app.state.database, [key])[key][0]


def test_a_vote_is_given_once_and_taken_back_once(app):
    client = signed_in(app, "Ada")
    for up, count in (("true", 1), ("true", 1), ("false", 0), ("false", 0), ("true", 1)):
        assert send(client, "/papers/galore/vote", up=up).headers["location"] == "/papers/galore"
        assert upvotes(app, "galore") == count


def test_the_database_itself_holds_a_second_vote_off(app):
    client = signed_in(app, "Ada")
    set_vote(app.state.database, "galore", client.person, True)
    with pytest.raises(sqlite3.IntegrityError), app.state.database.write() as on:
        on.execute("INSERT INTO votes VALUES ('galore', ?, 0)", (client.person.id,))


def test_the_arxiv_id_and_the_key_are_one_paper(app):
    client = signed_in(app, "Ada")
    arxiv = next(one.arxiv for one in load() if one.key == "galore")
    send(client, f"/papers/{arxiv}/vote", up="true")
    send(client, "/papers/galore/vote", up="true")
    assert upvotes(app, "galore") == 1 and upvotes(app, arxiv) == 0


def test_a_button_says_what_it_will_do_and_what_is_so(app):
    client = signed_in(app, "Ada")
    for voted in ("false", "true"):
        text = client.get("/papers/galore").text
        form = re.search(r'<form class="vote" action="/papers/galore/vote".*?</form>', text, re.S)[0]
        assert f'aria-pressed="{voted}"' in form
        up = re.search(r'name="up" value="(\w+)"', form)[1]
        assert up == ("true" if voted == "false" else "false")
        send(client, "/papers/galore/vote", up=up)
    assert upvotes(app, "galore") == 0


def test_with_htmx_the_answer_is_the_button_alone(app):
    client = signed_in(app, "Ada")
    answer = send(
        client, "/papers/galore/vote", {"HX-Request": "true"}, up="true", next="/papers?month=2024-03"
    )
    assert answer.status_code == 200 and answer.text.strip().startswith('<form class="vote"')
    assert 'aria-pressed="true"' in answer.text and "Upvote, 1 so far" in answer.text
    assert 'value="/papers?month=2024-03"' in answer.text and "<html" not in answer.text
    again = re.search(r'name="csrf" value="([^"]+)"', answer.text)[1]
    assert client.post("/papers/galore/vote", data={"csrf": again, "up": "false"}).status_code == 303


def test_lists_the_page_and_the_api_show_the_same_numbers(app):
    for name in ("Ada", "Grace", "Edsger"):
        client = signed_in(app, name)
        send(client, "/papers/galore/vote", up="true")
    send(client, "/papers/galore/comments", text="A remark")
    reader = browser(app)
    for address in ("/papers/galore", "/search?q=galore"):
        text = reader.get(address).text
        assert re.search(r"next=/[^>]*galore[^>]*3 upvotes; sign in to upvote", text), address
    assert '<a href="/papers/galore#comments">1 comment</a>' in reader.get("/search?q=galore").text
    assert reader.get("/api/papers/galore").json()["upvotes"] == 3
    listed = reader.get("/api/papers/search?q=galore").json()
    item = next(one for one in listed if one["paper"]["thalweg"]["key"] == "galore")
    assert (item["paper"]["upvotes"], item["numComments"]) == (3, 1)


def test_counts_of_a_list_are_those_of_each_paper(app):
    clients = [signed_in(app, f"p{number}") for number in range(4)]
    keys = [entry.key for entry in load()][:30]
    expected = dict.fromkeys(keys, 0)
    for at, client in enumerate(clients):
        for key in keys[:: at + 2]:
            set_vote(app.state.database, key, client.person, True)
            expected[key] += 1
    assert {key: up for key, (up, _) in counts(app.state.database, [*keys, keys[0]]).items()} == expected
    assert counts(None, keys) == dict.fromkeys(keys, (0, 0)) and counts(app.state.database, []) == {}
    ranked = most_upvoted(app.state.database, since=0.0)
    assert dict(ranked) == {key: up for key, up in expected.items() if up}
    assert [up for _, up in ranked] == sorted((up for up in expected.values() if up), reverse=True)
    assert most_upvoted(app.state.database, since=time.time() + 60) == []


def test_votes_and_comments_follow_an_imported_paper_into_the_catalog(tmp_path):
    arxiv = next(one.arxiv for one in load() if one.key == "galore")
    before = create_app(folder=tmp_path)
    ada, grace = signed_in(before, "Ada"), signed_in(before, "Grace")
    database = before.state.database
    # As if the paper had been imported before the catalog knew it.
    set_vote(database, arxiv, ada.person, True)
    set_vote(database, arxiv, grace.person, True)
    set_vote(database, "galore", grace.person, True)
    set_vote(database, "2601.00001", ada.person, True)
    write(database, arxiv, ada.person, "said early")
    after = create_app(folder=tmp_path).state.database
    assert counts(after, ["galore", arxiv, "2601.00001"]) == {
        "galore": (2, 1),
        arxiv: (0, 0),
        "2601.00001": (1, 0),
    }


def test_a_vote_for_no_paper_or_no_direction_is_refused(app):
    client = signed_in(app, "Ada")
    assert send(client, "/papers/no-such-paper/vote", up="true").status_code == 404
    assert send(client, "/papers/galore/vote").status_code == 422
    assert send(client, "/papers/galore/vote", up="perhaps").status_code == 422


def test_without_people_lists_have_no_votes(app):
    assert "upvote" not in browser(app).get("/papers").text


FULL = """
import resource, sys
from desk_people import form_token, signed_in
from thalweg.desk.app import create_app
from thalweg.desk.counts import counts
app = create_app(folder=sys.argv[1])
client = signed_in(app, "Ada")
token = form_token(client)
def post(address, **fields):
    return client.post(address, data={"csrf": token, **fields}).status_code
def said():
    return counts(app.state.database, ["galore"])["galore"]
resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
assert [post("/papers/galore/vote", up="true"), post("/papers/galore/comments", text="x")] == [503, 503]
page = client.get("/papers/galore")
assert page.status_code == 200 and "Upvote, 0 so far" in page.text and said() == (0, 0)
assert "POST /papers/{name}/vote" in client.get("/health").text
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert [post("/papers/galore/vote", up="true"), post("/papers/galore/comments", text="x")] == [303, 303]
assert said() == (1, 1)
print("survived")
"""


def test_on_a_full_disk_a_vote_is_refused_said_and_taken_again_later(tmp_path):
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, env=here
    )
    assert done.stdout == "survived\n", done.stderr


SERVER = """
import socket, sys, uvicorn
from thalweg.desk import limits
from thalweg.desk.app import create_app
limits.ALLOWED["vote"] = ((10**6, 1), (10**6, 1))
listening = socket.socket(); listening.bind(("127.0.0.1", 0)); listening.listen()
print(listening.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(create_app(folder=sys.argv[1]), log_level="error")).run(sockets=[listening])
"""


def test_every_vote_that_was_confirmed_is_there_after_a_sigkill_in_the_storm(tmp_path):
    app, keys = create_app(folder=tmp_path), [entry.key for entry in load()]
    people = [signed_in(app, f"voter {number}") for number in range(4)]
    given = [(one.person.id, one.cookies["thalweg_session"], form_token(one)) for one in people]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    base = f"http://127.0.0.1:{int(server.stdout.readline())}"
    confirmed, enough = [], threading.Event()

    def storm(person, session, token):
        with httpx.Client(base_url=base, cookies={"thalweg_session": session}, timeout=120) as client:
            for key in keys:
                try:
                    fields = {"csrf": token, "up": "true"}
                    answer = client.post(f"/papers/{key}/vote", data=fields, headers={"HX-Request": "true"})
                except httpx.TransportError:
                    return
                assert answer.status_code == 200
                confirmed.append((key, person))
                if len(confirmed) >= 60:
                    enough.set()

    threads = [threading.Thread(target=storm, args=one) for one in given]
    for one in threads:
        one.start()
    assert enough.wait(timeout=240)
    server.send_signal(signal.SIGKILL)
    server.wait()
    for one in threads:
        one.join()
    assert 60 <= len(confirmed) < len(keys) * len(people), "killed in the middle"
    after = create_app(folder=tmp_path).state.database
    kept = {tuple(row) for row in after.rows("SELECT paper, person FROM votes")}
    assert set(confirmed) <= kept
    assert len(kept) - len(confirmed) <= len(people), "no more than was on its way"
    assert after.rows("PRAGMA integrity_check")[0][0] == "ok"
