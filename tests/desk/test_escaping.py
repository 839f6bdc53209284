"""Whatever comes from papers, people, runs and addresses is shown as text on every page."""

from __future__ import annotations

import json
import re
import time
import xml.etree.ElementTree as xml
from urllib.parse import quote

import pytest

from desk_hostile import HOSTILE, harm, hostile_desk
from desk_people import PASSWORD, browser, person, send, signed_in
from thalweg.desk.digests import Digest
from thalweg.desk.imported import checked
from thalweg.desk.limits import Limits
from thalweg.desk.paper import Paper
from thalweg.desk.postman import Postman
from thalweg.desk.run_rows import rows_of
from thalweg.desk.settings import MailSettings
from thalweg.desk.subscriptions import Subscriber, Subscriptions
from thalweg.desk.wants import Wants


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """It has a mail server by name, so that readers may subscribe, though nobody listens there."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "desk").mkdir()
    settings = folder / "desk" / "mail.toml"
    settings.touch(mode=0o600)
    settings.write_text(
        'host = "127.0.0.1"\nport = 1\nsecurity = "none"\n'
        'from = "Desk <desk@example.org>"\npublic_url = "https://desk.example"\n'
    )
    return hostile_desk(folder)


@pytest.fixture(autouse=True)
def unlimited(app):
    app.state.limits = Limits()


@pytest.fixture(scope="module")
def reader(app):
    return browser(app)


@pytest.fixture(scope="module")
def owner(app):
    return signed_in(app, "Olga", "owner")


def test_the_reader_of_these_tests_notices_harm():
    bad = ["<p><evil7>", "<script>x</script>", "<a onclick=x>", '<a href="javascript:x">', "<img src=//x>"]
    bad += ["<p style=x>", '<form action="https://x">', '<base href="/">', '<a href="/\\x">', "<iframe>"]
    assert all(harm(one) for one in bad)
    assert not harm('<a href="https://x" title="<evil7>">&lt;evil7&gt;</a><script src="/static/x"></script>')


PAGES = ["/papers", "/papers?date=2026-01-02", "/papers?month=2026-01", "/papers/trending", "/topics"]
PAGES += ["/methods", "/findings", "/runs", "/health", "/papers/galore", "/subscribe", "/people/sign-in"]
PAGES += [f"/papers/doi:10.1000~evil{number}" for number in range(len(HOSTILE))]
PAGES += [f"/runs/{number}" for number in range(1, len(HOSTILE) + 1)]
PAGES += ["/runs/1?findings=1", "/runs/1/findings/1", "/runs/1/phases", "/runs/compare?run=1&run=2"]


@pytest.mark.parametrize("address", PAGES)
def test_no_text_from_outside_becomes_markup(reader, owner, address):
    for client in (reader, owner):
        answer = client.get(address)
        assert answer.status_code < 500
        assert harm(answer.text) == []


def test_the_hostile_texts_are_really_on_the_pages_that_were_looked_at(reader):
    for address in ("/papers?date=2026-01-02", "/papers/galore", "/runs", "/runs/2", "/health"):
        assert "evil7" in reader.get(address).text, address
    assert "49" not in reader.get("/papers/doi:10.1000~evil10").text.split("<h1", 1)[1].split("</h1>")[0]


def test_pages_of_people_and_comments_are_safe_too(app, owner):
    first = app.state.database.rows("SELECT min(id), max(id) FROM comments")[0]
    for address in ("/people", "/account", *(f"/comments/{number}/edit" for number in first)):
        assert harm(owner.get(address).text) == []
    elsewhere = browser(app, headers={"User-Agent": HOSTILE[2]})
    person(app, "Grace")
    send(elsewhere, "/people/sign-in", name="Grace", password=PASSWORD)
    shown = elsewhere.get("/account").text
    assert "evil7" in shown and harm(shown) == []
    for page in range(1, 7):
        assert harm(owner.get(f"/papers/galore?comments={page}").text) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_what_an_address_or_a_form_says_is_shown_as_text(reader, owner, text):
    asked = [f"/search?{field}={quote(text)}" for field in ("q", "topic", "room", "status")]
    asked += [f"/papers?{field}={quote(text)}" for field in ("date", "week", "month", "p")]
    asked += [f"/people/sign-in?next={quote(text)}", f"/subscribe?topic={quote(text)}&q={quote(text)}"]
    asked += [f"/{quote(text, safe='')}", f"/papers/{quote(text, safe='')}", f"/join/{quote(text, safe='')}"]
    asked += [f"/runs?q={quote(text)}", f"/runs/1?show={quote(text)}", f"/runs/{quote(text, safe='')}"]
    for address in asked:
        answer = reader.get(address)
        assert answer.status_code < 500 and harm(answer.text) == [], address
    forms = [
        send(reader, "/people/sign-in", name=text, password="", next=text),
        send(owner, "/people/invite", name=text, role=text),
        send(owner, "/papers/galore/comments", text=text + "x" * 6000),
        send(reader, "/subscribe", email="ada@example.org", topic=text, q=text),
        send(reader, "/subscribe", email="ada@example.org", every=text),
    ]
    for answer in forms:
        assert answer.status_code < 500 and harm(answer.text) == []


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("domain", ["", "@example.org"])
def test_what_is_no_mail_address_comes_back_in_its_field_as_text(app, reader, text, domain):
    answer = send(reader, "/subscribe", email=text + domain, topic="gradient spikes")
    assert answer.status_code == 400 and harm(answer.text) == []
    shown = re.search(r'<input[^>]*name="email"[^>]*>', answer.text)[0]
    assert "evil7" in shown
    assert not app.state.database.rows("SELECT 1 FROM subscription_requests WHERE address LIKE '%evil7%'")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_question_that_is_subscribed_to_is_text_on_the_pages_of_its_reader(app, reader, text):
    them = Subscriptions(app.state.database)
    wants = Wants(questions=(text,))
    address = f"reader{HOSTILE.index(text)}@example.org"
    _, token = them.claim(them.ask(address, "daily", wants, time.time()), time.time())
    asked = reader.get(f"/subscriptions/confirm/{token}").text
    secret = them.confirm(token, time.time()).secret
    for shown in (asked, reader.get(f"/subscriptions/{secret}").text):
        assert "evil7" in shown and harm(shown) == []


def test_what_arrives_while_somebody_looks_is_safe_before_a_script_puts_it_in(app, reader):
    with app.state.runs.open() as store:
        rows = rows_of(store, list(store.newest()), app.state.runs)
    assert len(rows) == len(HOSTILE) and sum("evil7" in row["html"] for row in rows) > len(HOSTILE) // 2
    assert [harm(row["html"]) for row in rows] == [[]] * len(rows)
    for number in range(1, len(HOSTILE) + 1):
        answer = reader.get(f"/runs/{number}/findings/1")
        assert answer.status_code == 200 and "<li" in answer.text and harm(answer.text) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_mail_holds_hostile_papers_and_questions_as_text(app, text):
    settings = MailSettings("127.0.0.1", 25, "none", "Desk <desk@example.org>", "https://desk.example")
    wants = Wants(topics=(text,), questions=(text,))
    who = Subscriber(1, "ada@example.org", "secret", "daily", wants, 0.0, 0.0, "", False)
    paper = Paper("evil", title=text, summary=text, authors=(text,), organisation=text, topics=(text,))
    postman = Postman(app.state.database, app.state.shelf, settings, app.state.problems)
    message = postman.message(Digest(who, "2026-01-02", (paper, paper), 0.0), "<1@desk.example>")
    shown = message.get_body(("html",)).get_content()
    # Mail needs its styles on the tags; nothing else may be there that a page may not hold.
    found = [one for one in harm(shown) if not one.startswith(("style=", "<style>"))]
    assert found == [] and "evil7" in shown
    assert message["To"] == "ada@example.org" and "\n" not in str(message["Subject"])


def test_feeds_hold_hostile_papers_as_text(reader):
    for kind in ("atom", "rss"):
        answer = reader.get(f"/feeds/papers.{kind}", params={"q": HOSTILE[2]})
        names = {one.tag.rpartition("}")[2] for one in xml.fromstring(answer.content).iter()}
        assert answer.status_code == 200 and not names & {"evil7", "script", "img"}
        assert xml.fromstring(reader.get(f"/feeds/papers.{kind}").content) is not None


def test_the_api_says_that_it_is_json_so_that_no_browser_reads_it_as_a_page(reader):
    for address in ("/api/daily_papers", "/api/papers/search?q=evil7", "/api/runs", "/api/runs/1/findings"):
        answer = reader.get(address)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        json.loads(answer.text)


@pytest.mark.parametrize(
    "link",
    [
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "data:text/html,x",
        "//evil.example",
        'https://x"onmouseover=alert(1)',
        "https://x><script>",
        " https://x y",
        "ftp://x",
    ],
)
@pytest.mark.parametrize("field", ["link", "repository"])
def test_a_paper_whose_link_is_no_plain_address_is_not_taken(field, link):
    with pytest.raises(ValueError, match=field):
        checked({"id": "2401.00001", "title": "x", field: link})
