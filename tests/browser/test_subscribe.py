"""From a topic to a mailbox and back: subscribe, confirm by the link in the mail, leave by one click."""

import email
import email.policy
import re
import threading

import pytest
from playwright.sync_api import expect

from smtp_server import MailServer


class Mailbox:
    def __init__(self):
        self.messages, self.came = [], threading.Event()

    async def handle_DATA(self, server, session, envelope):
        self.messages.append(email.message_from_bytes(envelope.content, policy=email.policy.default))
        self.came.set()
        return "250 taken"


@pytest.fixture
def mailbox():
    held = Mailbox()
    running = MailServer(held)
    held.port = running.port
    running.start()
    yield held
    running.stop()


def test_subscribe_confirm_and_leave(mailbox, new_desk, reader):
    settings = new_desk.data / "mail.toml"
    settings.write_text(
        f'host = "127.0.0.1"\nport = {mailbox.port}\nsecurity = "none"\n'
        f'from = "Desk <desk@example.org>"\npublic_url = "{new_desk.address}"\n'
    )
    settings.chmod(0o600)
    page = reader(new_desk)
    page.goto("/subscribe?topic=gradient+spikes&q=loss+spikes")
    expect(page.get_by_label("gradient spikes", exact=True)).to_be_checked()
    ticked, label = page.get_by_text("“loss spikes”"), page.get_by_text("in your words")
    assert label.bounding_box()["y"] > ticked.bounding_box()["y"] + ticked.bounding_box()["height"]
    page.get_by_label("Your e-mail address").fill("ada@example.org")
    page.get_by_role("button", name="Subscribe").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Look into your mailbox")
    assert mailbox.came.wait(120), "the mail goes out after the answer"
    (message,) = mailbox.messages
    assert message["To"] == "ada@example.org"
    text = message.get_body(("plain",)).get_content()
    page.goto(re.search(rf"{re.escape(new_desk.address)}\S+/confirm/\S+", text)[0])
    expect(page.get_by_role("main")).to_contain_text("gradient spikes")
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("main").get_by_role("status")).to_contain_text("ada@example.org")
    page.get_by_role("link", name="Unsubscribe").click()
    page.get_by_role("button", name="Unsubscribe").click()
    expect(page.get_by_role("main")).to_contain_text(re.compile("no more mail|unsubscribed|Unsubscribed"))


def test_a_desk_without_mail_says_what_to_do_and_offers_the_feeds(desk, reader):
    page = reader(desk)
    page.goto("/subscribe")
    expect(page.get_by_role("main")).to_contain_text("mail.toml")
    expect(page.get_by_role("main").get_by_role("link", name="Atom")).to_be_visible()
