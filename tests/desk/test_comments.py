"""Comments: written, changed for a day, taken back, removed, found again by their address, sent twice."""

from __future__ import annotations

import html
import re
import time

import pytest

from desk_people import browser, send, signed_in
from thalweg.desk import comments
from thalweg.desk.app import create_app
from thalweg.desk.comments import LONGEST, SHOWN, write
from thalweg.desk.counts import counts


@pytest.fixture
def app(tmp_path):
    return create_app(folder=tmp_path)


@pytest.fixture
def ada(app):
    return signed_in(app, "Ada")


def said(client, text):
    """Write a comment on GaLore; its number."""
    answer = send(client, "/papers/galore/comments", text=text)
    assert answer.status_code == 303
    return int(re.search(r"#comment-(\d+)$", answer.headers["location"])[1])


def test_a_comment_is_on_the_page_under_its_authors_name(app, ada):
    number = said(ada, "Works for **me**.")
    text = browser(app).get("/papers/galore").text
    item = re.search(rf'<li id="comment-{number}".*?</li>', text, re.S)[0]
    assert "<strong>Ada</strong>" in item and "<p>Works for <strong>me</strong>.</p>" in item
    assert "Delete" not in item and "Edit" not in item


def test_a_form_that_is_sent_twice_is_one_comment_but_words_may_be_said_again_later(app, ada, monkeypatch):
    first = said(ada, "+1")
    assert said(ada, "+1") == first
    assert said(signed_in(app, "Grace"), "+1") != first
    now = time.time()
    monkeypatch.setattr(comments.time, "time", lambda: now + 3600)
    assert said(ada, "+1") != first


def test_its_author_may_change_it_for_a_day(app, ada, monkeypatch):
    number, now = said(ada, "first words"), time.time()
    assert "first words" in ada.get(f"/comments/{number}/edit").text
    assert send(ada, f"/comments/{number}/edit", text="second words").status_code == 303
    text = ada.get("/papers/galore").text
    assert "second words" in text and "first words" not in text and "edited" in text
    monkeypatch.setattr(comments.time, "time", lambda: now + 86400 + 60)
    assert send(ada, f"/comments/{number}/edit", text="third words").status_code == 403
    assert f'href="/comments/{number}/edit"' not in ada.get("/papers/galore").text
    assert send(ada, f"/comments/{number}/delete").status_code == 303


def test_what_its_author_deletes_leaves_nothing(app, ada):
    number = said(ada, "said too soon")
    send(ada, f"/comments/{number}/delete")
    text = ada.get("/papers/galore").text
    assert "said too soon" not in text and "Removed" not in text
    assert ada.get(f"/comments/{number}").status_code == 404
    assert app.state.database.rows("SELECT text FROM comments")[0][0] == ""
    assert counts(app.state.database, ["galore"]) == {"galore": (0, 0)}


def test_what_a_moderator_removes_leaves_a_line_that_says_so(app, ada):
    number = said(ada, "an insult")
    send(signed_in(app, "Mo", "moderator"), f"/comments/{number}/delete")
    text = browser(app).get("/papers/galore").text
    assert "an insult" not in text and "Removed by a moderator" in text
    assert browser(app).get(f"/comments/{number}").status_code == 303
    assert send(ada, f"/comments/{number}/edit", text="again").status_code == 403
    assert app.state.database.rows("SELECT text FROM comments")[0][0] == ""
    assert counts(app.state.database, ["galore"]) == {"galore": (0, 0)}


@pytest.mark.parametrize("text", ["", " \n\t ", "\x00", "x" * (LONGEST + 1)])
def test_what_is_no_comment_comes_back_in_the_form_with_the_reason(app, ada, text):
    answer = send(ada, "/papers/galore/comments", text=text)
    assert answer.status_code == 422 and f"1 to {LONGEST} characters" in answer.text
    field = re.search(r"<textarea([^>]*)>\n(.*?)</textarea>", answer.text, re.S)
    assert 'aria-describedby="hint wrong"' in field[1] and html.unescape(field[2]).strip() == text.strip()
    assert app.state.database.rows("SELECT * FROM comments") == []


def test_the_longest_comment_counts_characters_not_bytes(app, ada):
    text = "ü" * LONGEST
    said(ada, text)
    assert app.state.database.rows("SELECT text FROM comments")[0][0] == text


def test_the_address_of_a_comment_leads_to_its_page_however_many_there_are(app, ada):
    numbers = [write(app.state.database, "galore", ada.person, f"remark {n}") for n in range(2 * SHOWN + 3)]
    reader = browser(app)
    for number in (numbers[0], numbers[SHOWN], numbers[-1]):
        place = reader.get(f"/comments/{number}").headers["location"]
        page, _, anchor = place.partition("#")
        text = reader.get(page).text
        assert f'<li id="{anchor}"' in text and anchor == f"comment-{number}"
        assert text.count('<li id="comment-') <= SHOWN
    assert f'id="comment-{numbers[-1]}"' in reader.get("/papers/galore").text, "the last page comes first"
    # Those that were taken back count on no page.
    send(ada, f"/comments/{numbers[0]}/delete")
    assert (
        reader.get(f"/comments/{numbers[SHOWN]}").headers["location"].startswith("/papers/galore?comments=1")
    )


def test_long_comments_fill_a_page_by_their_weight(app, ada):
    long = ["ü*a* " * 950 + str(n) for n in range(50)]
    numbers = [write(app.state.database, "galore", ada.person, text) for text in long]
    seen, reader, asked = [], ada, 1  # for whom each has its buttons
    while True:
        text = reader.get(f"/papers/galore?comments={asked}").text
        shown = re.search(r'<ol class="comments">.*?</ol>', text, re.S)[0]
        assert len(shown.encode()) <= 60_000
        found = [int(one) for one in re.findall(r'<li id="comment-(\d+)"', shown)]
        assert all(
            f"comments={asked}#" in reader.get(f"/comments/{one}").headers["location"] for one in found
        )
        seen += found
        if "Later comments" not in text:
            break
        asked += 1
    assert seen == numbers and asked > 5


def test_a_page_has_room_when_a_long_comment_was_shortened_or_taken_back(app, ada):
    for n in range(8):
        said(ada, "x*a* " * 900 + str(n))
    text = browser(app).get("/papers/galore").text
    assert "Earlier comments" in text
    for number in range(2, 9):
        if number % 2:
            send(ada, f"/comments/{number}/edit", text=f"short {number}")
        else:
            send(ada, f"/comments/{number}/delete")
    text = browser(app).get("/papers/galore").text
    assert "Earlier comments" not in text and text.count('<li id="comment-') == 4


def test_comments_from_before_weights_were_kept_are_weighed_when_the_desk_starts(app, ada, tmp_path):
    with app.state.database.write() as on:
        on.executemany(
            "INSERT INTO comments (paper, person, text, at) VALUES ('galore', ?, ?, 0)",
            [(ada.person.id, "x" * 5000)] * 30,
        )
    again = create_app(folder=tmp_path)
    assert "Earlier comments" in browser(again).get("/papers/galore").text
    assert again.state.database.rows("SELECT DISTINCT bytes FROM comments")[0][0] == len("<p></p>\n") + 5000


@pytest.mark.parametrize("asked", ["0", "-1", "x", "9" * 30, "٣", "", "999", "1'--"])
def test_any_page_that_is_asked_for_is_one_that_there_is(app, ada, asked):
    said(ada, "the only one")
    assert "the only one" in browser(app).get("/papers/galore", params={"comments": asked}).text


@pytest.mark.parametrize("number", ["0", "-1", "999", "9" * 30, "x"])
def test_a_comment_that_is_not_there_is_a_page_that_says_so(app, ada, number):
    for answer in (ada.get(f"/comments/{number}"), send(ada, f"/comments/{number}/delete")):
        assert answer.status_code in (404, 422) and "<h1>" in answer.text


def test_comments_are_of_one_paper(app, ada):
    said(ada, "about GaLore")
    assert "about GaLore" not in browser(app).get("/papers/spam").text
    assert send(ada, "/papers/none/comments", text="about nothing").status_code == 404
