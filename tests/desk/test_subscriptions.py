"""From a form to a mailbox and back, over HTTP and a real SMTP server."""

from __future__ import annotations

import html
import re
import time

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.postman import Postman
from thalweg.desk.problems import Problems
from thalweg.desk.subscriptions import HOLDS, Subscriptions
from thalweg.desk.wants import Wants

ADA = "ada@example.org"
SPIKES = {"topic": "gradient spikes", "every": "daily"}


@pytest.fixture
def site(database, post_office, monkeypatch):
    monkeypatch.setenv("THALWEG_MAIL_HOST", "127.0.0.1")
    monkeypatch.setenv("THALWEG_MAIL_PORT", str(post_office.port))
    monkeypatch.setenv("THALWEG_MAIL_SECURITY", "none")
    monkeypatch.setenv("THALWEG_MAIL_FROM", "Desk <desk@example.org>")
    return create_app(folder=database.folder, public="https://desk.example.org")


@pytest.fixture
def client(site):
    return TestClient(site, base_url="https://desk.example.org")


def form_token(client, address):
    found = re.search(r'name="csrf" value="([^"]+)"', client.get(address).text)
    return found[1] if found else ""


def fill(client, address, **fields):
    """Open a page, and send its form with these fields."""
    return client.post(address, data={"csrf": form_token(client, address), **fields})


def link(message, kind):
    text = message.get_body(("plain",)).get_content()
    return re.search(rf"https://desk\.example\.org(/subscriptions/{kind}\S+)", text)[1]


def test_subscribe_confirm_read_change_and_leave(client, post_office, database, shelf, settings, bring):
    answer = fill(client, "/subscribe?topic=gradient+spikes", email=ADA, **SPIKES)
    assert answer.status_code == 200 and "Look into your mailbox" in answer.text
    assert database.rows("SELECT * FROM subscribers") == []
    (asked,) = post_office.messages
    assert asked["To"] == ADA and asked["Auto-Submitted"] == "auto-generated"
    assert asked["List-Unsubscribe"] is None
    confirm = link(asked, "confirm/")

    # A scanner that opens the link confirms nothing.
    for _ in range(3):
        seen = client.get(confirm)
        assert seen.status_code == 200 and "<li>gradient spikes</li>" in seen.text
        assert seen.headers["cache-control"] == "no-store"
    assert database.rows("SELECT * FROM subscribers") == []
    token = form_token(client, confirm)
    done = client.post(confirm, data={"csrf": token})
    assert done.status_code == 200 and f"mail comes to {ADA}" in done.text
    assert client.post(confirm, data={"csrf": token}).status_code == 404
    assert "Nothing to confirm" in client.get(confirm).text

    bring(1)
    postman = Postman(database, shelf, settings, Problems(database))
    assert postman.digests() == {"sent": 1}
    manage = link(post_office.messages[1], "(?!confirm)")
    changed = fill(client, manage, every="weekly", topic=["grokking", ""], q="slow convergence")
    assert changed.status_code == 200 and "Changed." in changed.text
    (row,) = database.rows("SELECT every, wants FROM subscribers")
    assert row["every"] == "weekly"
    assert Wants.from_json(row["wants"]) == Wants(topics=("grokking",), questions=("slow convergence",))

    leave = re.search(r'href="(/subscriptions/[^"]+/unsubscribe)"', client.get(manage).text)[1]
    assert client.get(leave).status_code == 200 and len(database.rows("SELECT * FROM subscribers")) == 1
    assert "You get no more mail" in fill(client, leave).text
    for table in ("subscribers", "subscription_requests", "mails", "mailed", "never_write"):
        assert database.rows(f"SELECT * FROM {table}") == [], table
    assert client.get(manage).status_code == 404


def subscribed(database, address=ADA, now=None, **wants):
    them, now = Subscriptions(database), now or time.time()
    _, token = them.claim(them.ask(address, "daily", Wants(**wants), now), now)
    return them.confirm(token, now)


def test_a_mailbox_provider_unsubscribes_by_one_post_without_cookies(site, database):
    who = subscribed(database)
    provider = TestClient(site, base_url="https://desk.example.org", follow_redirects=False)
    address = f"/subscriptions/{who.secret}/unsubscribe"
    body = {"List-Unsubscribe": "One-Click"}
    headers = {"Origin": "https://mail.example.com", "Sec-Fetch-Site": "cross-site"}
    assert provider.post(address, data=body, headers=headers).status_code == 200
    assert database.rows("SELECT * FROM subscribers") == []
    assert provider.post(address, files={"List-Unsubscribe": (None, "One-Click")}).status_code == 200
    assert provider.post("/subscriptions/guess/unsubscribe", data=body).status_code == 200


def test_everything_but_one_click_needs_a_page_of_this_desk(client, database):
    who = subscribed(database)
    assert client.post("/subscribe", data={"email": ADA, **SPIKES}).status_code == 403
    assert client.post(f"/subscriptions/{who.secret}", data=SPIKES).status_code == 403
    assert client.post("/subscriptions/confirm/x").status_code == 403


def test_the_answer_says_nothing_about_the_address(client, post_office, database):
    strip = re.compile(r'value="[^"]*"').sub
    unknown = fill(client, "/subscribe", email="new@example.org", **SPIKES)
    subscribed(database)
    known = fill(client, "/subscribe", email=ADA, **SPIKES)
    never = subscribed(database, "never@example.org")
    Subscriptions(database).end(never.secret, never=True)
    banned = fill(client, "/subscribe", email="never@example.org", **SPIKES)
    again = fill(client, "/subscribe", email="new@example.org", **SPIKES)
    assert {one.status_code for one in (unknown, known, banned, again)} == {200}
    assert len({strip("", one.text) for one in (unknown, known, banned, again)}) == 1
    assert "never@example.org" not in post_office.recipients
    # One confirmation an hour for an address, asked for ever so often.
    assert post_office.recipients.count("new@example.org") == 1


def test_who_never_wants_mail_is_known_by_a_hash_alone(client, database):
    who = subscribed(database)
    assert fill(client, f"/subscriptions/{who.secret}/unsubscribe", never="yes").status_code == 200
    (row,) = database.rows("SELECT hash FROM never_write")
    assert len(row["hash"]) == 32
    assert ADA not in "".join(database.connection.iterdump())
    them = Subscriptions(database)
    assert them.ask(ADA.upper(), "daily", Wants(), time.time()) is None
    assert them.allow(ADA) and them.ask(ADA, "daily", Wants(), time.time())


def test_a_second_subscription_adds_to_the_first(database):
    first = subscribed(database, topics=("grokking",))
    second = subscribed(
        database, "ADA@example.org", time.time() + 3601, topics=("sharpness",), findings=("loss spike",)
    )
    assert second.wants == Wants(topics=("grokking", "sharpness"), findings=("loss spike",))
    assert (second.id, second.secret, second.address) == (first.id, first.secret, ADA)


def test_a_link_is_good_for_three_days_and_kept_as_a_hash(database):
    them, now = Subscriptions(database), time.time()
    _, token = them.claim(them.ask(ADA, "daily", Wants(), now), now)
    (kept,) = database.rows("SELECT token FROM subscription_requests")
    assert kept["token"] != token and len(kept["token"]) == 64
    assert them.asked(token, now + HOLDS - 1) and them.asked(token, now + HOLDS + 1) is None
    assert them.confirm(token, now + HOLDS + 1) is None
    assert them.confirm(kept["token"], now) is None
    assert them.confirm(token, now + HOLDS - 1) is not None


def test_a_question_of_a_stranger_is_not_mailed_to_anybody(client, post_office):
    fill(client, "/subscribe", email=ADA, q="Buy pills at http://spam.example", every="weekly")
    (message,) = post_office.messages
    assert "spam.example" not in message.as_string() and "pills" not in message.as_string()
    assert "Buy pills" in client.get(link(message, "confirm/")).text


@pytest.mark.parametrize(
    ("fields", "code", "why"),
    [
        ({"email": "ada@example.org\r\nBcc: eve@example.org"}, 400, "must be an e-mail address"),
        ({"email": "nobody"}, 400, "must be an e-mail address"),
        ({"email": ADA, "topic": "no such topic"}, 400, "topic must be one of this desk"),
        ({"email": ADA, "room": "kitchen"}, 400, "room must be one of"),
        ({"email": ADA, "every": "hourly"}, 400, "every must be one of daily, weekly"),
        ({"email": ADA, "q": "x" * 201}, 400, "a question must be plain text of at most 200"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_sent(client, post_office, fields, code, why):
    answer = fill(client, "/subscribe", **{"every": "weekly", **fields})
    assert answer.status_code == code and why in answer.text
    assert post_office.messages == []


TYPED = {"topic": ["loss spikes", "Grokking", "los spikes"], "finding": "loss spike", "q": "why it grows"}


def kept(text):
    """What a form holds: boxes that are ticked, and the field for another topic."""
    ticked = re.findall(r'name="(\w+)" value="([^"]*)" checked', text)
    other = re.search(r'id="other-topic"[^>]*', text)[0]
    return {value for _, value in ticked}, re.search(r'value="([^"]*)"', other)[1]


def test_a_topic_that_is_none_loses_nothing_of_the_form_and_the_nearest_is_named(client, post_office):
    answer = fill(client, "/subscribe", email=ADA, every="daily", **TYPED)
    text = html.unescape(answer.text)
    assert answer.status_code == 400 and "got 'los spikes' (did you mean loss spikes" in text
    assert f'value="{ADA}"' in text and 'id="other-topic"' in text and 'aria-describedby="wrong"' in text
    assert kept(text) == (
        {"daily", "loss spikes", "grokking", "loss spike", "why it grows"},
        "los spikes",
    )
    assert post_office.messages == []


def test_a_link_with_a_topic_that_is_none_leads_to_the_form(client):
    answer = client.get("/subscribe?topic=los+spikes&topic=Grokking")
    assert answer.status_code == 400 and kept(answer.text) == ({"weekly", "grokking"}, "los spikes")


def test_the_case_of_a_topic_does_not_matter(client, post_office):
    fill(client, "/subscribe", email=ADA, every="weekly", topic=["Loss Spikes", "loss spikes"])
    page = client.get(link(post_office.messages[0], "confirm/")).text
    assert page.count("loss spikes") == 1 and "Loss Spikes" not in page


def test_choosing_anew_loses_nothing_over_a_topic_that_is_none(client, post_office, database):
    fill(client, "/subscribe", email=ADA, **SPIKES)
    confirm = link(post_office.messages[0], "confirm/")
    mine = fill(client, confirm).url.path
    before = database.rows("SELECT wants, every FROM subscribers")[0]
    answer = fill(client, mine, every="daily", **TYPED)
    assert answer.status_code == 400 and "did you mean loss spikes" in answer.text
    assert kept(answer.text)[1] == "los spikes" and "no-store" in answer.headers["cache-control"]
    assert database.rows("SELECT wants, every FROM subscribers")[0] == before


def test_a_client_is_slowed_down(client, post_office):
    codes = [
        fill(client, "/subscribe", email=f"user{i}@example.org", **SPIKES).status_code for i in range(12)
    ]
    assert codes[:10] == [200] * 10 and codes[10:] == [429] * 2
    assert len(post_office.messages) == 10


def test_all_confirmations_together_are_bounded(database):
    them, now = Subscriptions(database), time.time()
    ids = [them.ask(f"user{i}@example.org", "daily", Wants(), now) for i in range(200)]
    for one in ids:
        them.claim(one, now)
    assert them.ask("late@example.org", "daily", Wants(), now) is None
    assert them.ask("late@example.org", "daily", Wants(), now + 3601)


def test_links_never_take_the_host_header(site, post_office):
    elsewhere = TestClient(site, base_url="https://evil.example")
    fill(elsewhere, "/subscribe", email=ADA, **SPIKES)
    assert post_office.messages and "evil.example" not in post_office.messages[0].as_string()


def test_without_settings_the_form_says_what_to_configure_and_offers_feeds(database, monkeypatch):
    monkeypatch.delenv("THALWEG_MAIL_HOST", raising=False)
    client = TestClient(create_app(folder=database.folder))
    text = client.get("/subscribe").text
    assert "mail.toml" in text and "/feeds/papers.atom" in text and 'type="email"' not in text
    (database.folder / "mail.toml").write_text('host = "x"\npassword = "hunter2"')
    (database.folder / "mail.toml").chmod(0o644)
    text = client.get("/subscribe").text
    assert "health page" in text and "hunter2" not in text + client.get("/health").text
    health = client.get("/api/health").json()
    (mail,) = [one for one in health["checks"] if one["name"] == "mail"]
    assert mail["state"] == "bad" and "chmod 600" in mail["what"]
    assert "no database" in TestClient(create_app()).get("/subscribe").text


@pytest.mark.parametrize("away", ["451 come back later", "not there"])
def test_a_server_that_is_away_does_not_lose_a_request(
    client, post_office, database, shelf, settings, monkeypatch, away
):
    post_office.answers[ADA] = away
    with monkeypatch.context() as changed:
        if away == "not there":
            changed.setenv("THALWEG_MAIL_PORT", "1")
        assert fill(client, "/subscribe", email=ADA, **SPIKES).status_code == 200
    assert post_office.messages == []
    assert [one.source for one in Problems(database).all()] == ["mail server"] * (away == "not there")
    del post_office.answers[ADA]
    assert Postman(database, shelf, settings, Problems(database)).digests() == {"confirmation sent": 1}
    assert fill(client, link(post_office.messages[0], "confirm/")).status_code == 200


def test_the_rest_of_a_mail_is_a_page_for_its_reader_alone(
    client, post_office, database, shelf, settings, bring
):
    who = subscribed(database, topics=("gradient spikes",))
    bring(1, 2, 3)
    Postman(database, shelf, settings, Problems(database), most=1).digests()
    text = post_office.messages[0].get_body(("plain",)).get_content()
    rest = re.search(r"And 2 more:\s+https://desk\.example\.org(\S+)", text)[1]
    page = client.get(rest)
    assert re.findall(r"Paper (\d) on", page.text) and "All 3 papers" in page.text
    other = subscribed(database, "bob@example.org")
    assert client.get(rest.replace(who.secret, other.secret)).status_code == 404


@pytest.mark.parametrize(
    "odd", ["%00", "%ff%fe", "%ed%a0%80", "%F0%9F%8E%89", "a%0d%0aBcc%3A%20b%40c.org", "%" * 9]
)
def test_odd_bytes_are_no_mistake_of_the_desk(site, database, post_office, odd):
    who = subscribed(database)
    client = TestClient(site, base_url="https://desk.example.org", raise_server_exceptions=False)
    asked = [
        client.get(f"/subscriptions/{odd}"),
        client.get(f"/subscriptions/confirm/{odd}"),
        client.get(f"/subscriptions/{odd}/unsubscribe"),
        client.post(f"/subscriptions/{odd}/unsubscribe"),
        client.get(f"/subscriptions/{who.secret}/mails/{10**30}"),
        client.get(f"/subscriptions/{who.secret}?done={odd}"),
        client.get(f"/feeds/papers.atom?q={odd}&topic={odd}"),
        *(client.get(f"/subscribe?{name}={odd}") for name in ("topic", "room", "finding", "q")),
    ]
    token = form_token(client, "/subscribe")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for field in ("email", "every", "topic", "q"):
        body = f"csrf={token}&email=bob%40example.org&{field}={odd}"
        asked.append(client.post("/subscribe", content=body, headers=form))
    assert max(answer.status_code for answer in asked) < 500
    assert {one["To"] for one in post_office.messages} <= {"bob@example.org"}
    assert all(one["Bcc"] is None for one in post_office.messages)
