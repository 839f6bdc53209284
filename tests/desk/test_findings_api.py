"""Findings, what was measured, and runs by the API; filters that nothing has are refused by name."""

from __future__ import annotations

import re
from html import unescape

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.imported import checked
from thalweg.papers import load
from thalweg.papers.status import read_evidence
from thalweg.watch import Finding, Reading, RunStore

EVIDENCE = {entry.key: found for entry in load() if (found := read_evidence(entry.key))}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("desk")
    with RunStore(folder / "runs.sqlite", write=True) as runs:
        run = runs.begin("first", {"optimizer": "Adam"})
        one = Finding("loss spike", 2, "it rose", {"loss": float("inf")})
        readings = [(1.0, Reading(step, "loss", 1.0 / step, layers={"head": 2.0})) for step in (1, 2, 3)]
        runs.write(run, 3, readings, [one, one])
        runs.end(run, "finished")
    app = create_app(folder / "runs.sqlite", folder=folder)
    app.state.shelf.library.add(
        checked(
            {
                "id": f"2405.{number:05}",
                "title": f"Loss spikes number {number} in training with Adam",
                "abstract": "Loss spikes follow gradient spikes; momentum reset and clipping help Adam.",
                "published": "2024-05-17",
            }
        )
        for number in range(30)
    )
    return TestClient(app)


def found(client, address):
    answer = client.get(address)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_every_finding_comes_with_the_papers_that_name_it_the_measured_first(client):
    by_name = {one["name"]: one for one in found(client, "/api/findings")}
    for name in {name for entry in load() for name in entry.addresses}:
        papers = by_name[name]["papers"]
        assert {one["key"] for one in papers} == {entry.key for entry in load() if name in entry.addresses}
        for one in papers:
            assert one["verdict"] == EVIDENCE.get(one["key"], {}).get("verdict")
        planned = [one["verdict"] is None for one in papers]
        assert planned == sorted(planned)
    assert by_name["not finite"]["severity"] == ["warning", "critical"]
    assert by_name["generalisation under way"]["severity"] == ["info"]
    assert by_name["attention-logit growth"]["severity"] == ["warning", "critical"]
    assert all(one["meaning"] and one["severity"] for one in by_name.values())
    assert by_name["gradient spike"]["imported"] == client.app.state.shelf.addressing(0)["gradient spike"][0]


def test_the_list_of_evidence_is_what_the_files_say_the_latest_first(client):
    listed = found(client, "/api/evidence")
    assert {one["key"] for one in listed} == set(EVIDENCE)
    for one in listed:
        file = EVIDENCE[one["key"]]
        assert [one[name] for name in ("verdict", "effect", "spread", "formula", "minutes", "date")] == [
            file[name] for name in ("verdict", "effect", "spread", "formula", "minutes", "date")
        ]
        assert one["seeds"] == len(file["seeds"])
    days = [one["date"] for one in listed]
    assert days == sorted(days, reverse=True)


def test_evidence_of_a_paper_is_its_file(client):
    for key in sorted(EVIDENCE)[:8]:
        assert found(client, f"/api/papers/{key}/evidence") == EVIDENCE[key]


def test_one_run_names_what_there_is_to_ask_of_it(client):
    (listed,) = found(client, "/api/runs")
    one = found(client, "/api/runs/1")
    assert {name: one[name] for name in listed} == listed
    assert (one["readings"], one["layered"], one["findings"]) == (["loss"], ["loss"], 2)
    assert found(client, f"/api/runs/1/curve?name={one['readings'][0]}")["step"] == [1, 2, 3]
    assert found(client, "/api/runs/1/findings")[0]["evidence"] == {"loss": "inf"}
    assert client.get("/api/runs/2").json() == {"error": "no run has the id 2"}


@pytest.mark.parametrize("question", ["", "&q=spikes+with+Adam"])
def test_a_search_by_finding_gives_papers_that_address_it_alone(client, question):
    pages = [
        found(client, f"/api/papers/search?finding=gradient+spike&limit=7&p={p}{question}") for p in range(12)
    ]
    papers = [one["paper"] for page in pages for one in page]
    ids = [one["id"] for one in papers]
    assert len(ids) == len(set(ids))
    assert all("gradient spike" in one["thalweg"]["addresses"] for one in papers)
    assert {one["thalweg"]["automatic"] for one in papers} == {True, False}
    everyone = {entry.arxiv or entry.key for entry in load() if "gradient spike" in entry.addresses}
    assert question or everyone <= set(ids)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("finding=loss+spke", "did you mean loss spike"),
        ("finding=kitchen", "finding must be one of attention-logit growth, "),
        ("topic=optimiser", "did you mean optimizer"),
        ("room=optin", "did you mean optim"),
        ("status=ready", "status must be one of imported, partial, planned, working"),
    ],
)
def test_a_filter_that_nothing_has_is_refused_and_says_what_is_allowed(client, asked, said):
    for question in ("", "&q=spike"):
        answer = client.get(f"/api/papers/search?{asked}{question}")
        assert answer.status_code == 400 and said in answer.json()["error"]


def test_a_value_of_the_wrong_kind_is_an_error_of_the_same_shape(client):
    answer = client.get("/api/daily_papers?limit=many")
    assert answer.status_code == 422 and list(answer.json()) == ["error"]
    assert "limit" in answer.json()["error"] and "many" not in answer.json()["error"]


def test_evidence_of_another_shape_is_an_error_that_says_so(client, monkeypatch):
    paper = client.app.state.shelf.paper("galore")
    monkeypatch.setitem(paper.measured.raw, "claim", ["none"])
    answer = client.get("/api/papers/galore/evidence")
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": "the evidence of 'galore' is damaged: claim"},
    )


def test_the_page_about_the_api_names_every_address_and_its_examples_answer(client):
    text = client.get("/api").text
    assert set(re.findall(r"<dt><code>([^<]+)</code>", text)) == set(client.app.openapi()["paths"])
    examples = [unescape(one) for one in re.findall(r'<a href="([^"]+)" aria-label="Example of', text)]
    (curl,) = re.findall(r"<code>curl '[^']+?(/api/[^']+)'</code>", text)
    examples.append(curl)
    assert len(examples) >= 9
    for address in ("/api/openapi.json", *examples):
        answer = client.get(address)
        assert answer.status_code == 200 and answer.content != b"[]", address
    assert '<a href="/api">API</a>' in client.get("/papers").text
