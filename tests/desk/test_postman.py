"""A subscriber gets what is new for them, once, on a real SMTP server; what fails for one fails for one."""

from __future__ import annotations

import datetime
import re
import time
from zoneinfo import ZoneInfo

import pytest

from thalweg.desk.delivery import NoServer
from thalweg.desk.ledger import Ledger
from thalweg.desk.postman import Busy, Postman
from thalweg.desk.problems import Problems
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.wants import Wants

DAY = 86400
ADA, BOB = "ada@example.org", "bob@example.org"
SPIKES = Wants(topics=("gradient spikes",))


@pytest.fixture
def postman(database, shelf, settings):
    return Postman(database, shelf, settings, Problems(database))


@pytest.fixture
def subscribe(database):
    def subscribe(address, wants=SPIKES, every="daily", when=None):
        when = time.time() if when is None else when
        them = Subscriptions(database)
        _, token = them.claim(them.ask(address, every, wants, when), when)
        return them.confirm(token, when)

    return subscribe


def on(postman, days):
    """The same, some days later."""
    again = Postman(postman.database, postman.shelf, postman.settings, postman.problems, postman.most)
    again.clock = lambda: time.time() + days * DAY
    return again


def titles(message):
    """Titles of imported papers in the plain part and in the HTML part."""
    parts = (message.get_body((kind,)).get_content() for kind in ("plain", "html"))
    found = [list(dict.fromkeys(re.findall(r"Paper (\d+) on", re.sub(r"\s+", " ", part)))) for part in parts]
    # The subject names the first paper once more, at the top.
    return [list(map(int, numbers)) for numbers in found]


def test_what_is_wanted_is_sent_once_and_nothing_new_means_no_mail(postman, post_office, subscribe, bring):
    subscribe(ADA)
    bring(1, 2)
    bring(3, about="variable stars in the Magellanic clouds")
    assert postman.digests() == {"sent": 1}
    assert titles(post_office.messages[0]) == [[2, 1], [2, 1]]
    assert on(postman, 1).digests() == {"nothing new": 1}
    bring(4, at=time.time() + 2 * DAY)
    assert on(postman, 2).digests() == {"sent": 1}
    assert titles(post_office.messages[1]) == [[4], [4]]


def test_a_new_version_of_a_paper_is_not_a_new_paper(postman, post_office, subscribe, bring, database):
    from thalweg.desk.imported import checked
    from thalweg.desk.library import Library

    subscribe(ADA)
    bring(1)
    postman.digests()
    later = {"id": "2601.00001v2", "title": "Paper 1 on gradient spikes, revised", "updated": "2027-01-01"}
    Library(database).add([checked(later)])
    assert "revised" in Library(database).by_id("2601.00001").title
    assert on(postman, 1).digests() == {"nothing new": 1}


def test_a_day_has_one_mail_and_what_came_later_is_in_the_next(postman, post_office, subscribe, bring):
    subscribe(ADA)
    bring(1)
    postman.digests()
    bring(2)
    assert postman.digests() == {}
    assert on(postman, 1).digests() == {"sent": 1}
    assert [titles(one)[0] for one in post_office.messages] == [[1], [2]]


def test_a_question_finds_papers_that_have_no_such_topic(postman, post_office, subscribe, bring):
    subscribe(ADA, Wants(questions=("the loss jumps suddenly in training",)))
    bring(1, about="sudden jumps of the training loss")
    bring(2, about="wheat yields in the Danube basin")
    postman.digests()
    assert titles(post_office.messages[0])[0] == [1]


def test_upvotes_and_measurements_come_first_and_the_rest_is_behind_a_link(
    postman, post_office, subscribe, bring, database
):
    who = subscribe(ADA)
    bring(*range(1, 8))
    next_day = on(postman, 1)
    with database.write() as writing:
        writing.execute(
            "INSERT INTO people (id, name, folded, role, password, since) VALUES (1, 'a', 'a', '', '', 0)"
        )
        writing.execute("INSERT INTO votes VALUES ('2601.00003', 1, 0)")
    postman.most = 2
    postman.digests()
    plain, html = titles(post_office.messages[0])
    assert plain == html == [3, 7]
    text = post_office.messages[0].get_body(("plain",)).get_content()
    mail = re.search(rf"And 5 more:\s+https://desk.example.org/subscriptions/{who.secret}/mails/(\d+)", text)
    assert len(Ledger(database).mail(who.id, int(mail[1]))) == 7
    assert next_day.digests() == {"nothing new": 1}


def test_wanted_papers_come_however_many_unwanted_ones_came_after_them(
    postman, post_office, subscribe, database
):
    from thalweg.desk.imported import Imported
    from thalweg.desk.library import Library
    from thalweg.desk.tagging import Tags

    def bring(first, count, day, *topics):
        library = Library(database, tags=lambda texts: [Tags(topics)] * len(texts))
        library.add(
            Imported(f"x:{number}", f"Paper {number} on", published=day)
            for number in range(first, first + count)
        )

    subscribe(ADA)
    bring(0, 30, "2026-11-01", "gradient spikes")
    for batch in range(1, 4):
        bring(10_000 * batch, 1700, "2026-11-20", "wheat")
    postman.most = 30
    assert postman.digests() == {"sent": 1}
    assert sorted(titles(post_office.messages[0])[0]) == list(range(30))
    assert Problems(database).all() == [], "nothing that somebody wants was left out"
    subscribe(BOB, Wants(questions=("gradient spikes",)))
    on(postman, 1).digests()
    (problem,) = Problems(database).all()
    assert "more than 5000 papers for questions" in problem.what


def test_headers_let_a_mailbox_unsubscribe_by_one_click(postman, post_office, subscribe, bring, database):
    who = subscribe(ADA)
    bring(1)
    postman.digests()
    message = post_office.messages[0]
    assert message["List-Unsubscribe"] == f"<https://desk.example.org/subscriptions/{who.secret}/unsubscribe>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["List-Id"] == "thalweg papers <papers.desk.example.org>"
    assert message["From"] == "Desk <desk@example.org>" and message["To"] == ADA
    assert message["Auto-Submitted"] == "auto-generated"
    assert re.fullmatch(r"<[^<>@\s]+@desk\.example\.org>", message["Message-ID"])
    assert database.rows("SELECT message FROM mails")[0]["message"] == message["Message-ID"]
    assert abs(message["Date"].datetime.timestamp() - time.time()) < 600


def test_mail_loads_nothing_and_its_styles_stand_on_the_elements(postman, post_office, subscribe, bring):
    subscribe(ADA)
    bring(1, about="gradient spikes <script>alert(1)</script> & clipping")
    postman.digests()
    html = post_office.messages[0].get_body(("html",)).get_content()
    assert not re.search(r"<(img|script|link|style|iframe)|url\(|@import", html)
    assert "&lt;script&gt;" in html and re.search(r'<h2 style="[^"]+', html)
    links = re.findall(r'href="([^"]+)"', html)
    assert links and all(one.startswith("https://desk.example.org/") for one in links)
    assert "<script>alert(1)</script> & clipping" in re.sub(
        r"\s+", " ", post_office.messages[0].get_body(("plain",)).get_content()
    )


def test_one_refused_address_stops_nobody_and_is_paused_after_three_times(
    postman, post_office, subscribe, bring, database
):
    subscribe(ADA)
    subscribe(BOB)
    post_office.answers[ADA] = "550 no such user here"
    for day in range(4):
        bring(day + 1, at=time.time() + day * DAY)
        on(postman, day).digests()
    assert len(post_office.to(BOB)) == 4 and not post_office.to(ADA)
    paused = database.rows("SELECT paused, refusals FROM subscribers WHERE address = ?", (ADA,))[0]
    assert tuple(paused) == (1, 3)
    (problem,) = [one.what for one in Problems(database).all() if one.source == "digest"]
    assert "paused" in problem and ADA not in problem
    del post_office.answers[ADA]
    bring(9, at=time.time() + 5 * DAY)
    on(postman, 5).digests()
    assert not post_office.to(ADA)
    subscribe(ADA, when=time.time() + 2 * DAY)
    on(postman, 6).digests()
    assert sorted(titles(post_office.to(ADA)[0])[0]) == [1, 2, 3, 4, 9]


@pytest.mark.parametrize("answer", ["450 mailbox busy", "550 5.7.1 your network is blocked"])
def test_a_server_that_says_later_is_asked_later_and_nothing_is_lost(
    postman, post_office, subscribe, bring, answer
):
    subscribe(ADA)
    bring(1)
    post_office.answers[ADA] = answer
    for _ in range(5):
        assert postman.digests() == {"later": 1}
    del post_office.answers[ADA]
    assert postman.digests() == {"sent": 1}
    assert titles(post_office.to(ADA)[0])[0] == [1]


@pytest.mark.parametrize("answer", ["451 try again", "554 looks like spam"])
def test_content_that_is_turned_down_was_not_sent(postman, post_office, subscribe, bring, answer):
    subscribe(ADA)
    bring(1)
    post_office.content_answer = answer
    postman.digests()
    post_office.content_answer = "250 taken"
    assert on(postman, 0).digests() == {"sent": 1}


def test_without_a_server_nothing_counts_as_sent_and_the_health_page_hears_of_it(
    postman, post_office, settings, subscribe, bring, database
):
    import dataclasses

    subscribe(ADA)
    bring(1)
    postman.settings = dataclasses.replace(settings, port=1)
    with pytest.raises(NoServer, match="the mail server cannot be reached"):
        postman.digests()
    assert [one.source for one in Problems(database).all()] == ["mail server"]
    postman.settings = settings
    assert postman.digests() == {"sent": 1}
    assert Problems(database).all() == []


def test_a_paper_that_breaks_a_mail_costs_others_nothing(postman, post_office, subscribe, bring, monkeypatch):
    from thalweg.desk import postman as module

    subscribe(ADA, Wants(topics=("grokking",)))
    subscribe(BOB)
    bring(1)
    bring(2, about="grokking in modular addition, delayed generalisation")
    right = module.paper_text

    def breaking(paper, public):
        if "grokking" in paper.topics:
            raise KeyError("torn row")
        return right(paper, public)

    monkeypatch.setattr(module, "paper_text", breaking)
    assert postman.digests() == {"later": 1, "sent": 1}
    assert post_office.recipients == [BOB]


def test_a_damaged_subscriber_costs_others_nothing(postman, post_office, subscribe, bring, database):
    who = subscribe(ADA)
    subscribe(BOB)
    bring(1)
    with database.write() as on:
        on.execute("UPDATE subscribers SET wants = '{torn' WHERE id = ?", (who.id,))
    assert postman.digests() == {"sent": 1}
    assert post_office.recipients == [BOB]
    assert Problems(database).all()[0].what == f"subscriber {who.id} is left out: the row is damaged"


def test_who_leaves_while_mail_is_sent_gets_none(postman, post_office, subscribe, bring, database):
    who = subscribe(ADA)
    bring(1)
    sending = Ledger.sending

    def leaving(self, mail):
        Subscriptions(database).end(who.secret)
        return sending(self, mail)

    Ledger.sending = leaving
    try:
        assert postman.digests() == {"withdrawn": 1}
    finally:
        Ledger.sending = sending
    assert post_office.messages == [] and database.rows("SELECT * FROM mailed") == []


def test_only_one_process_sends_at_a_time(postman, post_office, subscribe, bring):
    import threading

    subscribe(ADA)
    bring(1)
    post_office.stage = "content"
    first = threading.Thread(target=postman.digests)
    first.start()
    post_office.reached.wait()
    with pytest.raises(Busy):
        on(postman, 0).digests()
    post_office.go.set()
    first.join()
    assert on(postman, 0).digests() == {} and len(post_office.messages) == 1


def at(text, zone="Europe/Berlin"):
    return datetime.datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("every", "runs", "sent"),
    [
        # The last Sunday of October has 25 hours; 02:30 comes twice.
        ("daily", ["2026-10-24T23:59", "2026-10-25T00:01", "2026-10-25T23:59", "2026-10-26T00:01"], 3),
        # The last Sunday of March has 23.
        ("daily", ["2027-03-27T23:30", "2027-03-28T00:30", "2027-03-28T23:30", "2027-03-29T00:10"], 3),
        # Sunday and Monday, two days of one week, and the week that is of two years.
        ("weekly", ["2026-12-27T23:59", "2026-12-28T00:00", "2027-01-03T23:59", "2027-01-04T00:00"], 3),
    ],
)
def test_days_and_weeks_turn_at_midnight_on_the_wall(
    postman, post_office, subscribe, bring, settings, every, runs, sent
):
    import dataclasses

    postman.settings = dataclasses.replace(settings, zone=ZoneInfo("Europe/Berlin"))
    subscribe(ADA, every=every, when=at(runs[0]) - DAY)
    for number, moment in enumerate(map(at, runs)):
        bring(number, at=moment - 1)
        postman.clock = lambda moment=moment: moment
        postman.digests()
    assert len(post_office.messages) == sent
    numbers = [number for one in post_office.messages for number in titles(one)[0]]
    assert len(numbers) == len(set(numbers))


def test_a_week_without_news_is_looked_at_once(postman, post_office, subscribe, bring):
    monday = at("2026-12-07T06:00")
    subscribe(ADA, every="weekly", when=monday - DAY)
    postman.clock = lambda: monday
    assert postman.digests() == {"nothing new": 1}
    bring(1)
    postman.clock = lambda: monday + DAY
    assert postman.digests() == {}


def test_a_confirmation_that_could_not_go_out_goes_with_the_next_run(postman, post_office, database):
    Subscriptions(database).ask(ADA, "daily", Wants(), time.time())
    assert postman.digests() == {"confirmation sent": 1}
    assert on(postman, 0).digests() == {}
    assert "https://desk.example.org/subscriptions/confirm/" in post_office.messages[0].as_string()
