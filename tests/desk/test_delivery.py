"""What became of a message: known from the server's own words, and by which stage the connection broke."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from aiosmtpd.smtp import AuthResult

from smtp_server import MailServer
from thalweg.desk.delivery import Delivery, NoServer
from thalweg.desk.mail import mail_message

ADA = "ada@example.org"


@pytest.fixture
def message(settings):
    return mail_message(settings, ADA, "The desk can send mail", "test", time.time())


def test_a_message_arrives_as_it_was_written(settings, message, post_office):
    with Delivery(settings) as delivery:
        assert delivery.send(message, ADA).state == "sent"
    (got,) = post_office.messages
    for part in ("plain", "html"):
        sent, written = (one.get_body((part,)).get_content().split("\n") for one in (got, message))
        assert [line.rstrip("\r") for line in sent] == written
    assert got["Subject"] == "The desk can send mail" and got["Message-ID"] == message["Message-ID"]


@pytest.mark.parametrize(
    ("answer", "state"),
    [("550 no such user", "refused"), ("550 5.7.1 relaying denied", "later"), ("421 too busy", "later")],
)
def test_a_recipient_is_refused_or_comes_later_and_the_next_one_gets_theirs(
    settings, message, post_office, answer, state
):
    post_office.answers[ADA] = answer
    with Delivery(settings) as delivery:
        assert delivery.send(message, ADA).state == state
        assert delivery.send(message, "bob@example.org").state == "sent"
    assert post_office.recipients == ["bob@example.org"]


def test_withdrawn_at_the_last_moment_it_is_not_sent(settings, message, post_office):
    with Delivery(settings) as delivery:
        assert delivery.send(message, ADA, before=lambda: False).state == "withdrawn"
    assert post_office.messages == []


class Script:
    """A server that says these lines, one after each that it hears, and then hangs up."""

    def __init__(self, *lines: str) -> None:
        self._lines = lines
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as talk:
                for line in self._lines:
                    talk.write(line.encode() + b"\r\n")
                    talk.flush()
                    heard = talk.readline()
                    while line.startswith("354") and heard not in (b".\r\n", b""):
                        heard = talk.readline()

    def close(self) -> None:
        self._socket.close()


OPEN = ("220 here", "250 hello", "250 sender")


@pytest.mark.parametrize(
    ("lines", "state"),
    [
        (OPEN, "later"),
        ((*OPEN, "250 recipient"), "unknown"),
        ((*OPEN, "250 recipient", "354 go on"), "unknown"),
        ((*OPEN, "250 recipient", "451 not now"), "later"),
        ((*OPEN, "250 recipient", "354 go on", "nonsense"), "unknown"),
        ((*OPEN, "250 recipient", "354 go on", "250 taken"), "sent"),
    ],
)
def test_a_connection_that_breaks_tells_by_its_stage_whether_it_was_sent(settings, message, lines, state):
    server = Script(*lines)
    with Delivery(dataclasses.replace(settings, port=server.port)) as delivery:
        assert delivery.send(message, ADA).state == state
    server.close()


def test_a_server_that_hangs_up_after_each_message_is_called_again(settings, message):
    server = Script(*OPEN, "250 recipient", "354 go on", "250 taken")
    with Delivery(dataclasses.replace(settings, port=server.port)) as delivery:
        assert [delivery.send(message, ADA).state for _ in range(3)] == ["sent"] * 3
    server.close()


@pytest.mark.parametrize("lines", [(), ("554 go away",), ("220 here", "250 hello", "530 5.7.0 not you")])
def test_a_server_that_takes_nothing_is_no_server(settings, message, lines):
    server = Script(*lines)
    with Delivery(dataclasses.replace(settings, port=server.port)) as delivery, pytest.raises(NoServer):
        delivery.send(message, ADA)
    server.close()


@pytest.mark.filterwarnings("ignore:Requiring AUTH")
def test_a_password_is_needed_and_is_in_no_error(settings, message):
    def check(server, session, envelope, mechanism, data):
        return AuthResult(success=data.password == b"right", handled=False)

    class Taking:
        async def handle_DATA(self, server, session, envelope):
            return "250 taken"

    options = {"authenticator": check, "auth_required": True, "auth_require_tls": False}
    controller = MailServer(Taking(), **options)
    controller.start()
    try:
        at = dataclasses.replace(settings, port=controller.port, user="desk", password="right")
        with Delivery(at) as delivery:
            assert delivery.send(message, ADA).state == "sent"
        wrong = dataclasses.replace(at, password="hunter2")
        with Delivery(wrong) as delivery, pytest.raises(NoServer) as error:
            delivery.send(message, ADA)
        assert "user or the password (535)" in str(error.value) and "hunter2" not in str(error.value)
    finally:
        controller.stop()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_certificate_is_checked(settings, message, post_office, tmp_path, monkeypatch):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    controller = MailServer(post_office, tls_context=context, require_starttls=True)
    controller.start()
    try:
        at = dataclasses.replace(settings, host="localhost", port=controller.port, security="starttls")
        with Delivery(at) as delivery, pytest.raises(NoServer, match="certificate verify failed"):
            delivery.send(message, ADA)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Delivery(at) as delivery:
            assert delivery.send(message, ADA).state == "sent"
        plain = dataclasses.replace(at, port=settings.port)
        with Delivery(plain) as delivery, pytest.raises(NoServer, match="STARTTLS"):
            delivery.send(message, ADA)
    finally:
        controller.stop()
