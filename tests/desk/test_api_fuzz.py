"""The API by its own schema and the pages by their queries: no mistake, and nothing that is not declared."""

from __future__ import annotations

import itertools
import logging
import re

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from desk_hostile import HOSTILE, harm, hostile_desk
from desk_people import asked, browser

# Streams end when their reader leaves; they have their own tests.
ENDLESS = ("/api/runs/events", "/api/runs/{run}/events")
# 405, 413 and the like can come from every address and are declared for none.
DECLARED = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
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
def test_whatever_is_asked_of_the_api_it_answers_as_its_schema_says(app, kind):
    """By values that fit the schema, and by values that do not."""
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app).exclude(path=list(ENDLESS))
    operations = [one.ok() for one in schema.get_all_operations()]
    asked_of = 0
    for operation in operations:

        @RUNS
        @given(case=operation.as_strategy(generation_mode=kind))
        def ask(case):
            case.call_and_validate(checks=DECLARED)

        try:
            ask()
            asked_of += 1
        except Unsatisfiable:
            # Any text is a name, and where nothing is asked for nothing can be wrong.
            assert kind.is_negative
    assert asked_of >= (5 if kind.is_negative else len(operations))


THERE = {"name": ["galore", "spam", "doi:10.1000/evil1"], "run": [1, 2], "kind": ["atom", "rss"]}
QUERIES = {
    "/api/daily_papers": [{}, {"month": "2024-03"}, {"date": "2026-01-02", "sort": "trending"}],
    "/api/papers/search": [
        {"q": "loss spike"},
        {"finding": "loss spike", "q": "adam"},
        {"status": "imported"},
    ],
    "/api/runs/{run}/layers": [{"name": HOSTILE[0]}],
    "/api/runs/{run}/curve": [{"name": HOSTILE[0]}],
}


def test_what_there_is_comes_in_the_shape_that_the_schema_declares(app):
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app).exclude(path=list(ENDLESS))
    right = set()
    for operation in (one.ok() for one in schema.get_all_operations()):
        names = re.findall(r"{(\w+)}", operation.path)
        for filled in itertools.product(*(THERE[name] for name in names)):
            for query in QUERIES.get(operation.path, [{}]):
                path = dict(zip(names, filled, strict=True))
                case = operation.Case(path_parameters=path, query=query)
                answer = case.call_and_validate(checks=DECLARED)
                if answer.status_code == 200 and answer.content != b"[]":
                    right.add(operation.path)
        assert operation.path in right, "no answer has shown the shape"


def test_every_answer_and_every_error_is_declared(app):
    for path, methods in app.openapi()["paths"].items():
        for method, one in methods.items():
            for code, answer in one["responses"].items():
                shapes = [kind.get("schema", {}) for kind in answer.get("content", {}).values()]
                if path.startswith("/api/"):
                    assert shapes and all(shapes), (path, method, code)
                    assert int(code) < 400 or shapes == [{"$ref": "#/components/schemas/Failure"}]
            assert {"200", "400", "404", "422", "429", "503"} <= set(one["responses"])


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
