"""Every finding of a run can be reached, and no page of them weighs too much, however many there are."""

from __future__ import annotations

import html
import json
import random
import re
from itertools import pairwise

import pytest
from fastapi.testclient import TestClient

from thalweg.desk.app import create_app
from thalweg.desk.run_findings import page_of
from thalweg.watch import Finding, Remedy, RunStore
from thalweg.watch.store_findings import StoredFindings

REMEDY = Remedy("clip it", "clip_gradients(opt, 1)", "gradient-clipping")
CODE = "opt = optim.Descent(model.parameters(), lr=1e-3)  # <-- <this> & <that>\n"
MANY = 3000


def desk(path, *runs):
    """A client over a store with a run for each list of findings."""
    with RunStore(path / "s", write=True) as store:
        for findings in runs:
            store.write(store.begin("x", {}), 99, [], findings)
    return TestClient(create_app(path / "s"))


def numbers(text):
    return [int(one) for one in re.findall(r'id="finding-(\d+)"', text)]


def link(text, words):
    found = re.search(rf'<a[^>]* href="([^"]+)">{words}</a>', text.partition("Pages of findings")[2])
    return found and html.unescape(found[1])


def others(text):
    """Number, step, name and severity of those that only have marks."""
    found = re.search(r"data-others='([^']+)'", text)
    groups = json.loads(html.unescape(found[1])) if found else []
    return sorted((*mark, name, severity) for name, severity, marks in groups for mark in marks)


def through(findings, way, start):
    """The numbers on each page, from page to page."""
    while start != 0:
        found = page_of(findings, start)
        yield [number for number, *_ in found.listed]
        start = getattr(found, way) or 0
    if way == "later":
        yield [number for number, *_ in page_of(findings).listed]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Thousands of findings, short ones and long ones among each other, one far too long for any page."""
    source = random.Random(0)
    findings = [
        Finding(
            f"finding {source.randrange(5)}" + " with a long name" * source.choice((0, 0, 0, 40)),
            step,
            "ü&" * int(source.paretovariate(1) * 40 % 9000),
            {f"number {n}": n / 3 for n in range(source.randrange(9))},
            source.choice(("info", "warning", "critical")),
            tuple(f"layer {n}." for n in range(source.randrange(200))),
            ("spam",),
            (Remedy("one", CODE * source.randrange(20), "spam"),) * source.randrange(3),
        )
        for step in range(MANY)
    ]
    findings[1234] = Finding("too long", 1234, "x" * 90_000, {}, "info")
    return desk(tmp_path_factory.mktemp("many"), findings)


def test_of_thousands_of_findings_all_are_reached_and_no_page_is_heavy(many):
    with RunStore(many.app.state.store) as store:
        findings = StoredFindings(store, 1)
        later, earlier = (
            [*through(findings, way, start)] for way, start in (("later", 1), ("earlier", None))
        )
    for pages in (later, earlier[::-1]):
        assert (pages[0][0], pages[-1][-1]) == (1, MANY) and len(pages) < MANY / 8
        assert all(those == [*range(those[0], those[-1] + 1)] and len(those) <= 25 for those in pages)
        assert all(one[0] <= before[-1] + 1 for before, one in pairwise(pages)), "none is left out"
    weights = []
    for those in [*later[::15], [1235]]:
        text = many.get(f"/runs/1?findings={those[0]}").text
        assert numbers(text)[: len(those)] == those
        weights.append(len(text.encode()))
    assert max(weights) < 75_000, "scripts and styles without those of plots take 121 kB more"
    assert numbers(many.get("/runs/1").text) == earlier[0]
    assert numbers(many.get("/runs/1?all=1").text) == later[0]


@pytest.mark.parametrize("address", ["/runs/1", "/runs/1?findings=1", "/runs/1?findings=2000"])
def test_a_page_reads_no_more_findings_than_it_and_its_neighbours_show(many, monkeypatch, address):
    read = []
    monkeypatch.setattr(Finding, "from_dict", lambda data, of=Finding.from_dict: read.append(1) or of(data))
    assert len(numbers(many.get(address).text)) > 1 and 0 < len(read) <= 3 * 25
    read.clear()
    assert numbers(many.get("/runs/1/findings/2999").text) == [2999] and len(read) == 1


def test_the_api_gives_a_thousand_at_a_time_and_leads_to_the_rest(many):
    address, steps, answers = "/api/runs/1/findings", [], 0
    while address:
        answer = many.get(address)
        assert len(answer.json()) <= 1000
        steps += [one["step"] for one in answer.json()]
        address, answers = answer.links.get("next", {}).get("url"), answers + 1
    assert steps == [*range(MANY)] and answers == 3
    few = many.get("/api/runs/1/findings?limit=2&after=5")
    assert [one["step"] for one in few.json()] == [5, 6]
    assert few.headers["link"] == '</api/runs/1/findings?limit=2&after=7>; rel="next"'
    assert "link" not in many.get(f"/api/runs/1/findings?after={MANY - 3}").headers
    for wrong in ("limit=0", "limit=1001", "after=-1"):
        assert many.get(f"/api/runs/1/findings?{wrong}").status_code == 422


def test_what_a_page_says_of_findings_that_it_does_not_show_is_what_a_loop_over_all_says(many):
    with RunStore(many.app.state.store) as store:
        stored, all_of_them = StoredFindings(store, 1), store.findings(1)
        assert len(stored) == MANY and stored.between(2990, 9999) == all_of_them[2990:]
        assert stored.between(-5, 3) == all_of_them[:3] and stored.between(7, 7) == []
        marks = [(one.name, one.severity, one.step) for one in all_of_them]
        assert stored.marks(0, MANY) == marks and stored.marks(10, 12) == marks[10:12]
        for end in (0, 1, 1500, MANY, MANY + 9):
            assert stored.critical(end) == sum(one.severity == "critical" for one in all_of_them[:end])
            known = {one.name for one in all_of_them[:end]}
            assert stored.known_before({*(one.name for one in all_of_them), "never"}, end) == known
        names = [one.name for one in all_of_them]
        assert list(stored.counts().items()) == [(one, names.count(one)) for one in dict.fromkeys(names)]


@pytest.mark.parametrize(
    ("start", "words", "pages"),
    [
        ("", "Earlier findings", [(56, 80), (31, 55), (6, 30), (1, 25)]),
        ("?findings=1", "Later findings", [(1, 25), (26, 50), (51, 75), (56, 80)]),
        ("?all=1", "Later findings", [(1, 25), (26, 50), (51, 75), (56, 80)]),
        ("?findings=60", "Earlier findings", [(60, 80), (35, 59), (10, 34), (1, 25)]),
    ],
)
def test_links_lead_through_all_pages_both_ways(tmp_path, start, words, pages):
    client = desk(tmp_path, [Finding("spike", step, "", {}, "info") for step in range(80)])
    address, seen = f"/runs/1{start}", []
    while address:
        text = client.get(address).text
        seen.append((numbers(text)[0], numbers(text)[-1]))
        address = link(text, words)
    assert seen == pages
    assert link(text, "First") == (None if words.startswith("Earlier") else "/runs/1?findings=1#found")


def test_the_page_from_a_finding_on_begins_with_it_and_stays_when_more_come(tmp_path):
    spikes = [Finding("spike", step, "", {}, "info", (), (), (REMEDY,)) for step in range(80)]
    client = desk(tmp_path, spikes)
    for number in (1, 30, 56, 80):
        text = client.get(f"/runs/1?findings={number}").text
        assert numbers(text) == [*range(number, min(number + 25, 81))]
        assert sorted([one[0] for one in others(text)] + numbers(text)) == [*range(1, 81)]
        assert ("data-latest" in text) == (number >= 56)
    before = numbers(client.get("/runs/1?findings=31").text)
    with RunStore(tmp_path / "s", write=True) as store:
        store.write(1, 100, [], spikes[:7])
    assert numbers(client.get("/runs/1?findings=31").text) == before
    assert numbers(client.get("/runs/1?findings=88").text) == numbers(client.get("/runs/1").text)[-25:]
    for wrong in ("0", "-1", "x", str(10**30)):
        assert client.get(f"/runs/1?findings={wrong}").status_code == 422


def test_of_many_findings_the_latest_are_listed_and_the_others_have_marks(tmp_path):
    severities = ["critical" if step in (3, 70) else "info" for step in range(80)]
    client = desk(
        tmp_path,
        [Finding("spike", step, "", {}, one, (), (), (REMEDY,)) for step, one in enumerate(severities)],
    )
    some, first = client.get("/runs/1").text, client.get("/runs/1?findings=1").text
    assert numbers(some) == [*range(56, 81)] and "The latest 25; of those before, 1 is critical." in some
    assert [one[:2] for one in others(some)] == [(number, number - 1) for number in range(1, 56)]
    assert [one for one in others(some) if one[3] == "critical"] == [(4, 3, "spike", "critical")]
    assert "1 to 25." in first and "of those before" not in first
    assert some.count('class="remedy" open') == 0 and first.count('class="remedy" open') == 1


def test_marks_are_of_the_nearest_four_hundred(many):
    def marked(address):
        text = many.get(address).text
        found = others(text)
        assert len(found) == 400 and max(len(one[2]) for one in found) == 40
        return found[0][0], found[-1][0], numbers(text)

    first, last, listed = marked("/runs/1")
    assert (first, last) == (listed[0] - 400, listed[0] - 1)
    first, last, listed = marked("/runs/1?findings=1")
    assert (first, last) == (listed[-1] + 1, listed[-1] + 400)
    first, last, listed = marked("/runs/1?findings=2000")
    assert (first, last) == (1800, listed[-1] + 200)


def test_marks_with_names_of_their_own_are_fewer(tmp_path):
    named = [Finding(f"{step} ü'" + "ü" * 200, step, "", {}, "info") for step in range(600)]
    text = desk(tmp_path, named).get("/runs/1?findings=300").text
    marks = [one[0] for one in others(text)]
    assert 2 * 300 - sum(marks[0:1] + marks[-1:]) in range(-30, 30) and 30 < len(marks) < 60
    assert len(re.search(r"data-others='([^']+)'", text)[0].encode()) < 10_100


def test_pages_keep_what_else_the_address_asks_for_as_text(tmp_path):
    client = desk(tmp_path, [Finding("spike", step, "", {}, "info") for step in range(80)])
    query = {"show": ["loss", '"><b>'], "phases": "0", "all": "1"}
    later = link(client.get("/runs/1", params=query).text, "Later findings")
    assert later == "/runs/1?show=loss&show=%22%3E%3Cb%3E&phases=0&findings=26#found"
    text = client.get(later).text
    assert link(text, "Latest") == "/runs/1?show=loss&show=%22%3E%3Cb%3E&phases=0#found" and "<b>" not in text
    assert "Pages of findings" not in desk(tmp_path / "few", []).get("/runs/1").text


def test_a_finding_says_which_names_its_code_expects_where_it_has_code(tmp_path):
    remedies = (Remedy("one", CODE, "spam"),)
    told = [Finding("spike", 1, "", {}, "info", (), (), remedies), Finding("drift", 2, "", {}, "info")]
    client = desk(tmp_path, told)
    with_code, without = (client.get(f"/runs/1/findings/{number}").text for number in (1, 2))
    assert re.search("<code>loader</code>.* are those of your loop", with_code)
    assert "your loop" not in without


def test_findings_that_say_much_are_fewer_on_a_page(tmp_path):
    remedies = (Remedy("one", CODE * 40, "spam"), Remedy("other", CODE * 40, "galore"))
    spikes = [Finding("spike", step, "ü" * 900, {"a": 1.0}, "info", (), (), remedies) for step in range(40)]
    client = desk(tmp_path, spikes, [Finding("spike", 1, "x" * 90_000, {}, "info")])
    text = client.get("/runs/1").text
    shown = re.search(r'<ol id="findings".*?</ol>', text, re.S)[0]
    assert 35_000 < len(shown.encode()) <= 50_000
    assert numbers(shown)[-1] == 40 and f"The latest {len(numbers(shown))}." in text
    alone = client.get("/runs/2").text
    assert numbers(alone) == [1] and f"<p>{'x' * 4998} …</p>" in alone
