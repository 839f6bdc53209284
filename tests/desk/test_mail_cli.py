"""The commands: what they write, say and return, with a server, without one, and on a full disk."""

from __future__ import annotations

import email
import email.policy
import os
import re
import resource
import stat
import time

import pytest
from typer.testing import CliRunner

import thalweg.desk.postman as postman
from thalweg.cli import app
from thalweg.desk.ledger import Ledger
from thalweg.desk.problems import Problems
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.wants import Wants

ADA = "ada@example.org"


@pytest.fixture
def ada(database):
    them, now = Subscriptions(database), time.time()
    _, token = them.claim(them.ask(ADA, "weekly", Wants(topics=("gradient spikes",)), now), now)
    return them.confirm(token, now)


@pytest.fixture
def thalweg(database, monkeypatch):
    for name in [name for name in os.environ if name.startswith("THALWEG_")]:
        monkeypatch.delenv(name)

    def thalweg(*arguments, **environ):
        answer = CliRunner().invoke(app, ["desk", *arguments, "--data", str(database.folder)], env=environ)
        assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.exception
        return answer

    return thalweg


@pytest.fixture
def server(post_office):
    return {
        "THALWEG_MAIL_HOST": "127.0.0.1",
        "THALWEG_MAIL_PORT": str(post_office.port),
        "THALWEG_MAIL_SECURITY": "none",
        "THALWEG_MAIL_FROM": "Desk <desk@example.org>",
        "THALWEG_PUBLIC_URL": "https://desk.example.org",
    }


def test_a_dry_run_writes_messages_that_mail_programs_read_and_sends_nothing(
    thalweg, ada, bring, tmp_path, database
):
    bring(1, 2)
    for _ in range(2):
        answer = thalweg(
            "digest", "--dry-run", str(tmp_path / "out"), "--public", "https://papers.example.org"
        )
        assert answer.exit_code == 0 and answer.output.startswith("1 message in ")
        (path,) = (tmp_path / "out").iterdir()
        message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
        assert message.defects == [] and message["To"] == ADA and message["Subject"].startswith("2 papers: ")
        assert [part.get_content_type() for part in message.walk()] == [
            "multipart/alternative",
            "text/plain",
            "text/html",
        ]
        assert "https://papers.example.org/papers/2601.00001" in message.get_body(("plain",)).get_content()
        assert max(map(len, path.read_bytes().split(b"\r\n"))) < 998
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert database.rows("SELECT * FROM mails") == []


def test_digest_says_how_many_went_out(thalweg, ada, bring, server, post_office):
    bring(1)
    assert thalweg("digest", "--daily", **server).output == "nobody to write to\n"
    assert thalweg("digest", "--weekly", **server).output == "sent: 1\n"
    assert thalweg("digest", **server).output == "nobody to write to\n"
    assert len(post_office.messages) == 1


def test_a_server_that_is_down_is_one_line_and_exit_code_two(
    thalweg, ada, bring, server, post_office, database
):
    bring(1)
    answer = thalweg("digest", **{**server, "THALWEG_MAIL_PORT": "1"})
    assert answer.exit_code == 2 and "cannot be reached" in answer.output and "127.0.0.1:1)" in answer.output
    assert "Traceback" not in answer.output
    assert [one.source for one in Problems(database).all()] == ["mail server"]
    assert thalweg("digest", **server).output == "sent: 1\n"


def test_without_settings_it_says_what_to_set(thalweg, database):
    answer = thalweg("digest")
    assert answer.exit_code == 2
    assert "mail.toml" in answer.output and "THALWEG_MAIL_HOST" in answer.output
    assert thalweg("digest", THALWEG_MAIL_HOST="h", THALWEG_MAIL_FROM="a@b.org").exit_code == 2


def test_one_message_tries_the_settings_and_the_password_stays_unsaid(thalweg, server, post_office, tmp_path):
    answer = thalweg("mail", "test", ADA, **server)
    assert answer.exit_code == 0 and post_office.recipients == [ADA]
    post_office.answers[ADA] = "550 who?"
    answer = thalweg("mail", "test", ADA, **server)
    assert answer.exit_code == 2 and "did not take the message (550)" in answer.output
    secret = {"THALWEG_MAIL_USER": "desk", "THALWEG_MAIL_PASSWORD": "hunter2"}
    answer = thalweg("mail", "test", ADA, **server, **secret)
    assert answer.exit_code == 2 and "hunter2" not in answer.output
    answer = thalweg("mail", "test", "ada@example.org\nBcc: eve@example.org", **server)
    assert answer.exit_code == 2 and "must be an e-mail address" in answer.output
    assert "written: " in thalweg("mail", "test", ADA, "--dry-run", str(tmp_path)).output


def test_somebody_can_be_let_back_in(thalweg, ada, database):
    Subscriptions(database).end(ada.secret, never=True)
    assert thalweg("mail", "allow", ADA).output == "it can subscribe again\n"
    assert thalweg("mail", "allow", ADA).output == "it had not asked to be left alone\n"


@pytest.fixture
def full_disk():
    """Makes files unable to grow, as on a full disk, until it is called with False."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(now=True):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0 if now else limits[0], limits[1]))

    yield full
    full(False)


def test_a_full_disk_leaves_no_half_message(thalweg, ada, bring, tmp_path, full_disk, monkeypatch):
    bring(1, 2)
    right = postman.save_message

    def late(message, folder, name):
        full_disk()
        return right(message, folder, name)

    monkeypatch.setattr(postman, "save_message", late)
    answer = thalweg("digest", "--dry-run", str(tmp_path / "out"))
    full_disk(False)
    assert answer.exit_code == 2 and "File too large" in answer.output
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("moment", "then", "unknown"),
    [("begin", "sent: 1", 0), ("sending", "sent: 1", 0), ("sent", "unknown: 1", 1)],
)
def test_a_full_disk_at_any_moment_sends_nothing_twice(
    thalweg, ada, bring, server, post_office, database, full_disk, monkeypatch, moment, then, unknown
):
    bring(1)
    right = getattr(Ledger, moment)

    def late(*arguments):
        full_disk()
        return right(*arguments)

    monkeypatch.setattr(Ledger, moment, late)
    answer = thalweg("digest", **server)
    full_disk(False)
    monkeypatch.setattr(Ledger, moment, right)
    assert answer.exit_code == 2 and "nothing more was sent" in answer.output
    assert len(post_office.messages) == (moment == "sent")
    assert thalweg("digest", **server).output.strip() == then
    assert len(post_office.messages) == 1
    assert len(Problems(database).all()) == unknown


def test_a_disk_that_is_full_from_the_start_is_one_line(thalweg, ada, bring, server, post_office, full_disk):
    bring(1)
    full_disk()
    answer = thalweg("digest", **server)
    full_disk(False)
    assert answer.exit_code == 2 and re.search(r"cannot be used: .+", answer.output)
    assert post_office.messages == []


def test_imports_that_cannot_be_read_hold_a_digest_up_which_is_on_health_and_lose_nothing(
    thalweg, ada, bring, server, post_office, database
):
    bring(1)
    with database.write() as on:
        on.execute("ALTER TABLE labelled RENAME TO lost")
    answer = thalweg("digest", **server)
    assert answer.exit_code == 2 and "no such table: labelled; nothing more was sent" in answer.output
    assert [one.what.split(":")[0] for one in Problems(database).all()] == ["nothing more was sent"]
    assert post_office.messages == []
    with database.write() as on:
        on.execute("ALTER TABLE lost RENAME TO labelled")
    assert thalweg("digest", **server).exit_code == 0
    (message,) = post_office.messages
    assert "Paper 1 on gradient spikes" in message["Subject"]
