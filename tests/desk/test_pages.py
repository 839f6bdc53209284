"""The desk's pages and API, over the built-in catalog and a run store that a run has just written."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape

import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn

import thalweg
from thalweg.desk.app import create_app
from thalweg.desk.evidence_rows import measured
from thalweg.papers import load
from thalweg.watch import RunStore


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return TestClient(create_app(tmp_path_factory.mktemp("desk") / "runs.sqlite"))


PAGES = [
    "/papers",
    "/papers/trending",
    "/papers/galore",
    "/search?q=loss+spike",
    "/topics",
    "/methods",
    "/findings",
    "/runs",
    "/api",
]


@pytest.mark.parametrize("address", PAGES)
def test_a_page_answers_weighs_little_and_loads_nothing_from_elsewhere(client, address):
    answer = client.get(address)
    assert answer.status_code == 200
    assert len(answer.content) < 200_000
    loaded = re.findall(
        r'(?:src|href)="([^"]+)"', "".join(re.findall(r"<(?:script|link|img)[^>]*>", answer.text))
    )
    assert loaded and all(one.startswith("/") and not one.startswith("//") for one in loaded)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script>" not in answer.text and "style=" not in answer.text


def test_every_paper_has_a_page(client):
    for entry in load():
        assert client.get(f"/papers/{entry.key}").status_code == 200, entry.key


@pytest.mark.parametrize("start", ["/papers", "/papers?month=2026-12"])
def test_the_papers_page_goes_from_page_to_page_over_all_papers(client, start):
    seen, address = [], start
    while address:
        text = client.get(address).text
        seen += re.findall(r'<h2><a href="/papers/([a-z0-9-]+)">', text)
        older = re.search(r'href="([^"]+)" rel="next"', text)
        address = older and unescape(older[1])
    assert len(seen) == len(set(seen))
    assert set(seen) == {entry.key for entry in load() if entry.date or start == "/papers"}


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("/papers?month=2024-13", "month must be a month such as 2024-05"),
        ("/papers?week=2024-20", "week must be a week such as 2024-W20"),
        ("/papers?date=yesterday", "date must be a day such as 2024-05-17"),
        ("/papers?date=2024-05-17&amp;month=2024-05", None),
        ("/search?room=kitchen", "room must be one of"),
    ],
)
def test_a_wrong_filter_is_named_with_what_is_allowed(client, address, why):
    answer = client.get(address.replace("&amp;", "&"))
    assert answer.status_code == 400
    assert why is None or why in answer.text


def test_the_start_page_says_how_much_was_measured_and_where(client):
    done = sum(measured(entry) is not None for entry in load())
    line = f'{done} of {len(load())} papers were measured here: <a href="/papers/trending">'
    assert done > 20 and line in client.get("/papers").text
    for other in ("/papers?p=1", "/papers?month=2024-05", "/papers/trending"):
        assert "were measured here" not in client.get(other).text


def test_every_topic_stands_under_its_first_letter_and_the_largest_stand_together(client):
    def named(address):
        return re.findall(r'href="/search\?topic=[^"]+" data-item>([^<]+)<', client.get(address).text)

    counts = Counter(topic for entry in load() for topic in entry.topics)
    first = named("/topics")
    assert len(first) == 120
    assert min(counts[topic] for topic in first) >= max(counts[topic] for topic in counts.keys() - first)
    letters = re.findall(r'href="/topics\?letter=(.)"', client.get("/topics").text)
    assert [topic for letter in letters for topic in named(f"/topics?letter={letter}")] == sorted(counts)
    assert client.get("/topics?letter=!").status_code == 400


def test_what_comes_from_outside_is_escaped(client):
    attack = "<script>alert(1)</script>"
    for address in (
        f"/search?q={attack}",
        f"/papers/{attack}",
        f"/papers?month={attack}",
        f"/search?topic={attack}",
    ):
        assert attack not in client.get(address).text


def test_a_list_says_how_many_wrote_a_paper_of_the_catalog_and_where(client):
    assert "4 authors · Imperial College London" in client.get("/papers?month=2025-01").text
    assert "Lucas Prieto, Melih Barsbey" in client.get("/papers/softmax-collapse").text


def test_an_unknown_paper_is_a_page_that_says_so(client):
    answer = client.get("/papers/no-such-paper")
    assert answer.status_code == 404 and "no-such-paper" in answer.text
    assert client.get("/api/papers/no-such-paper").json()["error"].startswith("no paper has the key")


def test_no_path_leads_out_of_the_static_folder(client):
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static//etc/passwd"):
        assert client.get(path).status_code == 404


def test_a_papers_page_shows_what_was_measured_and_its_plot(client):
    text = client.get("/papers/galore").text
    assert "opt = optim.GaLore(" in text and "thalweg study run galore" in text and "reproduced" in text
    plot = client.get("/papers/galore/plot.svg")
    assert plot.headers["content-type"].startswith("image/svg+xml") and b"<svg" in plot.content
    assert client.get("/papers/galore/plot.svg?setting=none").status_code == 404


def test_the_plots_of_all_settings_are_on_a_papers_page(client):
    papers = [one for one in client.app.state.shelf.papers if one.measured and len(one.measured.rows) > 1]
    for paper in papers[:5]:
        pictures = re.findall(r'<img class="plot" src="([^"]+)"', client.get(f"/papers/{paper.key}").text)
        assert len(pictures) == len(set(pictures)) == len(paper.measured.rows)
    assert client.get(unescape(pictures[-1])).content != client.get(pictures[0]).content


def test_days_weeks_and_months_are_one_click_from_every_list(client):
    for address in ("/papers", "/papers/trending", "/papers?month=2024-05", "/papers/about?room=optim"):
        tabs = client.get(address).text.partition('aria-label="Periods"')[2].partition("</nav>")[0]
        assert "Month</a>" in tabs and "Trending</a>" in tabs, address


def test_a_run_is_shown_with_its_curve_findings_and_events(tmp_path):
    store = tmp_path / "runs.sqlite"
    client = TestClient(create_app(store))
    assert "No run yet" in client.get("/runs").text
    assert client.get("/runs/1").status_code == 404
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with thalweg.watch(model, optimizer, store=store, name="<b>toy</b>") as run:
        for step in range(60):
            loss = model(torch.ones(8, 4)).square().mean()
            loss.backward()
            run.log(loss=float("nan") if step == 50 else loss)
            optimizer.step()
            optimizer.zero_grad()
    assert "&lt;b&gt;toy&lt;/b&gt;" in client.get("/runs").text
    page = client.get("/runs/1").text
    assert "not finite" in page and "<b>toy" not in page
    assert client.get("/api/runs").json()[0]["steps"] == 60
    curve = client.get("/api/runs/1/curve?name=loss&points=20").json()
    assert 8 <= len(curve["step"]) <= 20 and curve["step"][0] == 1
    with RunStore(store) as read:
        names = [one.name for one in read.findings(1)]
    assert [one["name"] for one in client.get("/api/runs/1/findings").json()] == names
    events = client.get("/api/runs/1/events").text
    assert events.count("event: finding") == len(names) and '"state": "finished"' in events
    known = client.get("/api/runs/1/events", headers={"Last-Event-ID": str(len(names))}).text
    assert "event: finding" not in known


def test_without_a_store_there_are_no_run_pages():
    client = TestClient(create_app())
    assert 'href="/runs"' not in client.get("/papers").text
    assert client.get("/api/runs").json() == []
