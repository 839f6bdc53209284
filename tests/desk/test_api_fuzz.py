"""The API by its own schema and the pages by their queries: whatever is asked, no answer is a mistake."""

from __future__ import annotations

import logging

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from desk_hostile import HOSTILE, harm, hostile_desk
from desk_people import asked, browser

# Streams end when their reader leaves; they have their own tests.
ENDLESS = ("/api/runs/events", "/api/runs/{run}/events")
RUNS = settings(
    max_examples=12,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return hostile_desk(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", list(schemathesis.GenerationMode))
def test_whatever_is_asked_of_the_api_it_makes_no_mistake(app, kind):
    """By values that fit the schema, and by values that do not."""
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app).exclude(path=list(ENDLESS))
    operations = [one.ok() for one in schema.get_all_operations()]
    asked_of = 0
    for operation in operations:

        @RUNS
        @given(case=operation.as_strategy(generation_mode=kind))
        def ask(case):
            answer = case.call()
            assert answer.status_code < 500, case.as_curl_command()
            if answer.headers["content-type"][0].startswith("application/json"):
                answer.json()
            else:
                assert answer.status_code >= 400 or case.path.startswith("/feeds/")

        try:
            ask()
            asked_of += 1
        except Unsatisfiable:
            # Any text is a name, and where nothing is asked for nothing can be wrong.
            assert kind.is_negative
    assert asked_of >= (5 if kind.is_negative else len(operations))


VALUES = st.one_of(
    st.sampled_from(
        [*HOSTILE, "", "0", "-1", "1e309", "9" * 40, "2024-02-30", "2024-W60", "\x00", "\ud800"[:0]]
    ),
    st.text(max_size=40),
    st.integers().map(str),
    st.dates().map(str),
)
PAGES = {
    "/papers": ("date", "week", "month", "p"),
    "/papers/trending": ("p",),
    "/papers/galore": ("comments",),
    "/papers/galore/plot.svg": ("setting",),
    "/search": ("q", "topic", "room", "status", "p"),
    "/findings": ("q",),
    "/runs": ("q", "state", "before"),
    "/runs/1": ("show",),
    "/runs/compare": ("run", "name"),
    "/people/sign-in": ("next",),
    "/subscribe": ("topic", "room", "finding", "q"),
    "/feeds/papers.atom": ("topic", "room", "q"),
}


@settings(RUNS, max_examples=15)
@pytest.mark.parametrize("page", PAGES)
@given(data=st.data())
def test_whatever_a_query_says_a_page_answers_and_stays_whole(app, page, data):
    query = data.draw(st.dictionaries(st.sampled_from([*PAGES[page], "x"]), st.lists(VALUES, max_size=3)))
    answer = browser(app).get(page, params=query)
    assert answer.status_code < 500, query
    if "html" in answer.headers["content-type"]:
        assert harm(answer.text) == [], query


@settings(RUNS, max_examples=60)
@given(
    path=st.lists(
        st.sampled_from(
            ["papers", "runs", "comments", "join", "api", "people", "subscriptions", "feeds", "static"]
        )
        | st.text(max_size=12)
        | st.integers().map(str),
        max_size=4,
    )
)
def test_whatever_the_path_there_is_an_answer(app, path):
    code, text = asked(app, "/" + "/".join(path))
    assert code < 500, path
    if text.startswith("<!doctype html>"):
        assert harm(text) == [], path
