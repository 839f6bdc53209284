"""Kept pages: rendered once, never late, never somebody else's."""

import asyncio
import gzip
import subprocess
import sys
import types

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.database import Database
from thalweg.desk.page_memory import PageMemory
from thalweg.desk.people import invite, join
from thalweg.desk.sessions import COOKIE
from thalweg.desk.votes import set_vote

PASSWORD = "a long winding river"


class Application:
    """Counts how often it is asked; answers with the number, after a moment."""

    def __init__(self, status=200, kind=b"text/html", more=(), fails=False, form=False):
        self.asked, self.status, self.fails, self.form = 0, status, fails, form
        self.headers = [(b"content-type", kind), *more]

    async def __call__(self, scope, receive, send):
        self.asked += 1
        if self.form:
            scope.setdefault("state", {})["form_token"] = "secret"
        body = f"{self.asked} ".encode() * 2000
        await asyncio.sleep(0.01)
        if self.fails:
            raise RuntimeError
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": body})


async def ask(memory, path="/papers", **headers):
    """Status, headers and body of an answer."""
    sent = []

    async def send(message):
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "query_string": b""}
    await memory(scope | {"headers": given}, None, send)
    return sent[0]["status"], dict(sent[0]["headers"]), b"".join(one.get("body", b"") for one in sent)


def memory_of(application, database=None):
    return PageMemory(application, types.SimpleNamespace(database=database))


def test_many_readers_at_once_are_served_one_rendering():
    application = Application()
    memory = memory_of(application)

    async def crowd():
        return await asyncio.gather(*(ask(memory) for _ in range(50)))

    found = asyncio.run(crowd())
    assert application.asked == 1 and len({body for _, _, body in found}) == 1


@pytest.mark.parametrize(
    "application",
    [
        Application(status=404),
        Application(kind=b"application/json"),
        Application(more=[(b"set-cookie", b"a=b")]),
        Application(more=[(b"cache-control", b"no-store")]),
        Application(form=True),
    ],
    ids=["error", "json", "cookie", "no-store", "form"],
)
def test_what_is_not_for_everybody_is_made_for_each(application):
    memory = memory_of(application)

    async def crowd():
        return await asyncio.gather(*(ask(memory) for _ in range(5)))

    assert len({body for _, _, body in asyncio.run(crowd())}) == 5


def test_who_is_signed_in_and_what_is_no_page_passes_by():
    application = Application()
    memory = memory_of(application)
    for headers in ({"cookie": f"a=b; {COOKIE}=x"}, {"cookie": f"__Host-{COOKIE}=x"}):
        for _ in range(2):
            asyncio.run(ask(memory, **headers))
    for path in ("/account", "/api/daily_papers", "/runs/1/events"):
        for _ in range(2):
            asyncio.run(ask(memory, path))
    assert application.asked == 10


def test_a_page_that_fails_fails_for_everybody_and_is_tried_again():
    application = Application(fails=True)
    memory = memory_of(application)

    async def crowd():
        return await asyncio.gather(*(ask(memory) for _ in range(5)), return_exceptions=True)

    assert all(isinstance(one, RuntimeError) for one in asyncio.run(crowd()))
    application.fails = False
    assert asyncio.run(ask(memory))[0] == 200


def test_a_commit_of_another_process_makes_the_page_anew(tmp_path):
    application, database = Application(), Database(tmp_path)
    database.ensure("test", ("CREATE TABLE test (value)",))
    memory = memory_of(application, database)
    first = asyncio.run(ask(memory))[2]
    assert asyncio.run(ask(memory))[2] == first
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('INSERT INTO test VALUES (1)'); "
    subprocess.run([sys.executable, "-c", code + "c.commit()", str(database.path)], check=True)
    assert asyncio.run(ask(memory))[2] != first


def test_a_page_that_is_made_while_something_changes_is_not_given_to_who_asks_after_the_change(tmp_path):
    application, database = Application(), Database(tmp_path)
    database.ensure("test", ("CREATE TABLE test (value)",))
    memory = memory_of(application, database)

    async def during():
        early = asyncio.create_task(ask(memory))
        while not application.asked:
            await asyncio.sleep(0)
        with database.write() as on:
            on.execute("INSERT INTO test VALUES (1)")
        return (await ask(memory))[2], (await early)[2]

    late, early = asyncio.run(during())
    assert late != early and asyncio.run(ask(memory))[2] == late


def test_a_page_is_packed_for_who_can_unpack_it_and_not_sent_to_who_has_it():
    memory = memory_of(Application())
    _, headers, body = asyncio.run(ask(memory))
    assert b"content-encoding" not in headers and int(headers[b"content-length"]) == len(body)
    _, packed, small = asyncio.run(ask(memory, accept_encoding="gzip, br"))
    assert packed[b"content-encoding"] == b"gzip" and gzip.decompress(small) == body
    status, _, nothing = asyncio.run(ask(memory, if_none_match=headers[b"etag"].decode()))
    assert (status, nothing) == (304, b"")


def test_a_vote_is_on_the_next_page_that_anybody_reads(tmp_path):
    site = create_app(folder=tmp_path)
    database = site.state.database
    person = join(database, invite(database, "Ada"), "Ada", PASSWORD)
    reader, key = TestClient(site), site.state.shelf.papers[0].key

    def upvotes(client):
        before = client.get("/papers").text.split(f'href="/papers/{key}"')[0]
        return before.rpartition("▲</span>")[2].split("<")[0]

    assert upvotes(reader).strip() == "0"
    for up in (True, False, True):
        set_vote(database, key, person, up)
        assert upvotes(reader).strip() == str(int(up))
    assert reader.get("/papers").headers["etag"]
