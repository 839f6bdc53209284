"""What leads nowhere says what to do next: error pages, empty lists, topics that the desk does not have."""

from __future__ import annotations

import html
import re

import pytest

from desk_people import browser, person, send
from thalweg.desk.app import create_app
from thalweg.watch import RunStore


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    RunStore(folder / "runs.sqlite", write=True).close()
    return create_app(folder / "runs.sqlite", folder=folder)


@pytest.fixture
def client(app):
    return browser(app)


def main(answer):
    return html.unescape(answer.text).partition("<main")[2].partition("</main>")[0]


def test_who_has_to_sign_in_first_finds_the_way_there_and_back(client):
    answer = client.get("/people")
    assert answer.status_code == 401 and 'href="/people/sign-in?next=/people"' in main(answer)
    answer = send(client, "/papers/galore/comments", text="words")
    assert answer.status_code == 401 and 'href="/people/sign-in"' in main(answer)
    assert "/people/sign-in" not in main(client.get("/papers/none-of-this-name"))


def test_a_run_that_is_not_there_leads_to_the_runs(client):
    assert 'href="/runs"' in main(client.get("/runs/99"))
    assert 'href="/runs"' not in main(client.get("/papers/none-of-this-name"))


@pytest.mark.parametrize(
    ("address", "first"),
    [
        ("/papers?p=15", "/papers"),
        ("/papers?month=2024-05&p=9", "/papers?month=2024-05"),
        ("/papers/trending?p=99", "/papers/trending"),
        ("/papers/about?topic=Grokking&p=99", "/papers/about?topic=grokking"),
    ],
)
def test_a_page_behind_the_last_leads_to_the_first(client, address, first):
    text = main(client.get(address))
    assert f'This list ends on an earlier page: <a href="{first}">' in text and "came out" not in text
    assert "/papers/galore" in text or '<ol class="papers">' in client.get(first).text


def test_no_list_speaks_of_a_time_that_was_not_asked_for(client):
    assert "No paper has all of that." in main(client.get("/papers/about?topic=grokking&room=distributed"))
    assert "No paper came out then." in main(client.get("/papers?date=1999-01-01"))


@pytest.mark.parametrize("topic", ["Loss Spikes", "LOSS  SPIKES", "loss spikes"])
def test_the_case_of_a_topic_does_not_matter(client, topic):
    papers = {
        address: re.findall(
            r'<h2><a href="(/papers/[^"]+)', client.get(address, params={"topic": topic}).text
        )
        for address in ("/search", "/papers/about")
    }
    assert papers["/search"] and papers["/papers/about"]
    exact = client.get("/search?topic=loss+spikes")
    assert papers["/search"] == re.findall(r'<h2><a href="(/papers/[^"]+)', exact.text)
    assert client.get("/api/papers/search", params={"topic": topic}).json()


@pytest.mark.parametrize("question", ["", "learning"])
def test_a_topic_that_is_none_is_said_with_the_nearest_and_the_question_stays(client, question):
    answer = client.get("/search", params={"topic": "Los Spikes", "q": question})
    text = main(answer)
    assert answer.status_code == 200 and "no topic “Los Spikes”. Did you mean" in text
    asked = "q=learning&" if question else ""
    assert f'<a href="/search?{asked}topic=loss+spikes">loss spikes</a>' in text
    assert "Nothing fits" not in text and "papers.atom?topic" not in answer.text
    text = main(client.get("/search?topic=zzzzzz"))
    assert "no topic “zzzzzz”. All are on" in text


@pytest.mark.parametrize("address", ["/papers/about", "/api/papers/search", "/feeds/papers.rss"])
def test_where_a_topic_is_none_the_answer_is_no_empty_list(client, address):
    answer = client.get(address, params={"topic": "los spikes"})
    assert answer.status_code == 400 and "did you mean loss spikes" in answer.text


def test_a_value_of_the_wrong_kind_is_named_by_its_argument(client):
    assert "run: Input should be a valid integer" in main(client.get("/runs/compare?run=x"))
    assert "run: Input" in main(client.get("/runs/compare?run=1&run=x"))
    assert "p: Input" in main(client.get("/papers?p=x"))


def test_one_upvote_is_one(app, client):
    ada = person(app, "Ada")
    with app.state.database.write() as on:
        on.execute("INSERT INTO votes (person, paper, at) VALUES (?, 'galore', 1)", (ada.id,))
    assert 'aria-label="1 upvote; sign in' in client.get("/papers/galore").text
