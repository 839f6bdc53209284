"""A real SMTP server on loopback, and a desk with papers to write about."""

from __future__ import annotations

import asyncio
import email
import email.policy
import threading
from email.message import EmailMessage
from importlib import import_module

import pytest

from smtp_server import MailServer
from thalweg.desk.database import Database
from thalweg.desk.imported import checked
from thalweg.desk.library import Library
from thalweg.desk.mail_cli import TABLES
from thalweg.desk.problems import Problems
from thalweg.desk.settings import MailSettings
from thalweg.desk.shelf import Shelf

PUBLIC = "https://desk.example.org"


class PostOffice:
    """Takes mail; ``answers`` says what it replies to a recipient, ``stages`` where it waits for ``go``."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.answers: dict[str, str] = {}
        self.content_answer = "250 taken"
        self.stage = ""
        self.reached, self.go = threading.Event(), threading.Event()
        self.came = threading.Event()

    async def _wait(self, stage: str) -> None:
        if stage == self.stage:
            self.reached.set()
            while not self.go.is_set():
                await asyncio.sleep(0.01)

    async def handle_MAIL(self, server, session, envelope, address, options):
        await self._wait("sender")
        envelope.mail_from = address
        return "250 go on"

    async def handle_RCPT(self, server, session, envelope, address, options):
        await self._wait("recipient")
        answer = self.answers.get(address, "250 go on")
        if answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return answer

    async def handle_DATA(self, server, session, envelope):
        if self.content_answer.startswith("250"):
            self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
            self.recipients += envelope.rcpt_tos
            self.came.set()
        await self._wait("content")
        return self.content_answer

    async def handle_QUIT(self, server, session, envelope):
        await self._wait("end")
        return "221 bye"

    def to(self, address: str) -> list[EmailMessage]:
        return [one for one in self.messages if one["To"] == address]


@pytest.fixture
def post_office():
    office = PostOffice()
    controller = MailServer(office)
    office.port = controller.port
    controller.start()
    yield office
    office.go.set()
    controller.stop()


@pytest.fixture
def settings(post_office):
    return MailSettings("127.0.0.1", post_office.port, "none", "Desk <desk@example.org>", PUBLIC)


@pytest.fixture
def database(tmp_path):
    made = Database(tmp_path / "desk")
    for part in TABLES:
        import_module(f"thalweg.desk.{part}").prepare(made)
    return made


@pytest.fixture
def shelf(database):
    return Shelf(Library(database), Problems(database))


@pytest.fixture
def bring(database):
    """Import papers by number: about gradient spikes, or about what ``about`` says; at a moment, or now."""

    def bring(
        *numbers: int, about: str = "gradient spikes in Adam's second moment, clipping", at: float = 0.0
    ):
        rows = [
            {
                "id": f"2601.{number:05}",
                "title": f"Paper {number} on {about}",
                "abstract": f"We study {about}.",
            }
            for number in numbers
        ]
        Library(database).add([checked(row) for row in rows])
        if at:
            with database.write() as on:
                on.executemany(
                    "UPDATE imported SET added = ? WHERE id = ?", [(at, row["id"]) for row in rows]
                )

    return bring
