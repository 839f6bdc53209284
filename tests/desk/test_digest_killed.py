"""SIGKILL at each moment of a digest: no paper twice, and what was surely not sent is sent next time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from thalweg.desk.database import Database
from thalweg.desk.postman import Postman
from thalweg.desk.problems import Problems
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.wants import Wants

PEOPLE = ("ada@example.org", "bob@example.org")
RUN = """
import json, sys
from thalweg.desk.database import Database
from thalweg.desk.library import Library
from thalweg.desk.postman import Busy, Postman
from thalweg.desk.problems import Problems
from thalweg.desk.settings import MailSettings
from thalweg.desk.shelf import Shelf

database = Database(sys.argv[1])
settings = MailSettings("127.0.0.1", int(sys.argv[2]), "none", "desk@example.org", "https://desk.example.org")
problems = Problems(database)
try:
    print(json.dumps(Postman(database, Shelf(Library(database), problems), settings, problems).digests()))
except Busy:
    print(json.dumps("busy"))
"""


@pytest.fixture
def run(database, post_office, bring):
    now = time.time()
    for address in PEOPLE:
        them = Subscriptions(database)
        _, token = them.claim(them.ask(address, "daily", Wants(topics=("gradient spikes",)), now), now)
        them.confirm(token, now)
    bring(1, 2, 3)

    def run():
        command = [sys.executable, "-c", RUN, str(database.folder), str(post_office.port)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    return run


def states(database: Database) -> list[str]:
    return [row["state"] for row in database.rows("SELECT state FROM mails ORDER BY id")]


@pytest.mark.parametrize(
    ("stage", "left", "then", "unknown"),
    [
        ("sender", ["prepared"], {"sent": 2}, 0),
        ("recipient", ["prepared"], {"sent": 2}, 0),
        ("content", ["sending"], {"sent": 1, "unknown": 1}, 1),
        ("end", ["sent", "sent"], {}, 0),
    ],
)
def test_a_killed_digest_goes_on_without_a_second_mail(
    run, database, shelf, settings, post_office, stage, left, then, unknown
):
    post_office.stage = stage
    process = run()
    assert post_office.reached.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert states(database) == left
    post_office.go.set()

    postman = Postman(database, shelf, settings, Problems(database))
    assert postman.digests() == then
    assert postman.digests() == {}

    assert len(post_office.recipients) == len(set(post_office.recipients)) == len(PEOPLE)
    reported = [one.what for one in Problems(database).all() if one.source == "digest"]
    assert len(reported) == unknown and all(
        "may be missing, and is not sent again" in one for one in reported
    )
    assert database.rows("PRAGMA integrity_check")[0][0] == "ok"


def test_two_digests_at_once_send_once(run, post_office):
    post_office.stage = "content"
    processes = [run(), run()]
    assert post_office.reached.wait(120)
    while all(one.poll() is None for one in processes):
        time.sleep(0.01)  # the other one leaves while the first is held in the middle of a message
    post_office.go.set()
    answers = [json.loads(one.communicate()[0]) for one in processes]
    assert sorted(post_office.recipients) == list(PEOPLE)
    assert "busy" in answers and {"sent": 2} in answers
