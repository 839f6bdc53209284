"""Search on the desk: the catalog and imported papers in one answer, whatever state the index is in."""

from __future__ import annotations

import random
import re
import sqlite3

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from thalweg.cli import app as command
from thalweg.desk import fresh_papers, health, library_health
from thalweg.desk.app import create_app
from thalweg.desk.database import Database
from thalweg.desk.imported import checked
from thalweg.desk.imported_search import index_folder, rebuild
from thalweg.desk.library import Library
from thalweg.papers import find

SUBJECTS = {
    "gardens": "orchid greenhouse humidity watering soil petals pruning shears",
    "boats": "sailing keel mast harbour tide anchor rudder hull",
    "bread": "sourdough flour oven crust yeast dough proofing baker",
}


def paper(number, title, abstract, day="2024-03-05"):
    return checked({"id": f"2403.{number:05}", "title": title, "abstract": abstract, "published": day})


def shelf_of(subject, count, first, day="2024-03-05"):
    words = [word + end for word in SUBJECTS[subject].split() for end in ("", "wright", "ward", "folk")]
    return [
        paper(
            first + i,
            f"{subject} number {i}",
            " ".join(random.Random(i).sample(words, 8)) + f" mark{first + i}",
            day,
        )
        for i in range(count)
    ]


@pytest.fixture
def library(tmp_path):
    library = Library(Database(tmp_path))
    library.add(
        [
            *shelf_of("gardens", 40, 100),
            *shelf_of("boats", 40, 200, "2023-07-01"),
            *shelf_of("bread", 40, 300, "2022-11-11"),
            paper(900, "Loss spikes in sourdough", "loss spikes and flour"),
        ]
    )
    return library


@pytest.fixture
def client(library):
    return TestClient(create_app(folder=library.database.folder))


def titles(client, address):
    answer = client.get(address)
    assert answer.status_code == 200
    return re.findall(r'<h2><a href="/papers/[^"]+">([^<]*)</a>', answer.text)


def everything(client, address):
    """Titles on all pages."""
    found = []
    while address:
        found += titles(client, address)
        following = re.search(r'href="(/search\?[^"]*)" rel="next"', client.get(address).text)
        address = following and following[1].replace("&amp;", "&")
    return found


def test_a_paper_is_found_by_word_before_there_is_an_index(client):
    assert titles(client, "/search?q=mark217") == ["boats number 17"]


def test_with_an_index_papers_are_found_by_meaning_too(client, library):
    rebuild(library)
    found = client.get("/api/papers/search?q=greenhouse+orchid&status=imported&limit=100").json()
    keeping = [one for one in found if not re.search(r"\b(greenhouse|orchid)\b", one["summary"])]
    assert keeping and all(one["title"].startswith("gardens") for one in keeping)


def test_what_came_after_the_index_is_found_by_word(client, library):
    rebuild(library)
    assert titles(client, "/search?q=zebra") == []
    library.add([paper(999, "A zebra", "stripes")])
    assert titles(client, "/search?q=zebra") == ["A zebra"]
    assert titles(client, "/search?q=zebra&room=optim") == []
    rebuild(library)
    assert titles(client, "/search?q=zebra") == ["A zebra"]


def test_a_newer_version_is_found_by_its_new_words_at_once_and_once(client, library):
    rebuild(library)
    library.add([paper(900, "A zebra in sourdough", "stripes and flour", "2024-03-06")])
    assert titles(client, "/search?q=zebra+stripes") == ["A zebra in sourdough"]
    assert titles(client, "/search?q=sourdough+flour&status=imported").count("A zebra in sourdough") == 1
    assert titles(client, "/search?q=zebra&since=2024-03-06") == ["A zebra in sourdough"]
    assert titles(client, "/search?q=zebra&until=2024-03-05") == []
    assert titles(client, "/search?q=a+zebra+in+sourdough")[0] == "A zebra in sourdough"
    rebuild(library)
    assert titles(client, "/search?q=zebra+stripes") == ["A zebra in sourdough"]
    assert list(library.replaced(library.newest_change(), 999, 9)) == [], "the index holds it"


def test_what_is_not_searched_may_change_without_the_index_falling_behind(library):
    rebuild(library)
    change, last = library.newest_change(), len(list(library.stream()))
    known = {"id": "2403.00900", "title": "Loss spikes in sourdough", "abstract": "loss spikes and flour"}
    library.add([checked({**known, "published": "2024-03-05", "authors": ["Ada Arden"]})])
    assert library.by_id("2403.00900").authors and library.behind(change, last, 9) == 0
    library.add([paper(900, "Zebras", "stripes"), paper(901, "Zebras again", "stripes")])
    assert library.behind(change, last, 9) == 2 and library.behind(change, last, 1) == 1
    assert library.behind(library.newest_change(), last, 9) == 1


def test_catalog_and_imported_papers_are_in_one_answer_and_a_paper_in_both_once(client, library):
    galore = find("galore")
    library.add(
        [checked({"id": galore.arxiv, "title": galore.title, "abstract": "low-rank gradient galore"})]
    )
    for _ in range(2):
        found = titles(client, "/search?q=galore")
        assert found.count(galore.title) == 1
        both = titles(client, "/search?q=loss+spikes")
        assert "Loss spikes in sourdough" in both and find("spam").title in both
        rebuild(library)


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize(
    ("filters", "subjects"),
    [
        ("since=2023-07-01", {"gardens", "boats"}),
        ("until=2023", {"boats", "bread"}),
        ("since=2023&until=2023-12", {"boats"}),
        ("status=imported&since=2022-11&until=2022-11-11", {"bread"}),
        ("status=working", set()),
    ],
)
def test_dates_and_status_filter_before_the_answer_is_cut(client, library, indexed, filters, subjects):
    if indexed:
        rebuild(library)
    found = everything(client, f"/search?q=number&{filters}")
    assert {one.split()[0] for one in found if " number " in one} == subjects
    assert sum(" number " in one for one in found) == 40 * len(subjects)


@pytest.mark.parametrize("indexed", [False, True])
def test_pages_hold_every_answer_once_and_keep_question_and_filters(client, library, indexed):
    if indexed:
        rebuild(library)
    found = everything(client, "/search?q=number&status=imported")
    assert len(found) == len(set(found)) == 120
    first = client.get("/search?q=number&status=imported&since=2022-01-02").text
    assert 'href="/search?q=number&amp;status=imported&amp;since=2022-01-02&amp;p=1" rel="next"' in first
    assert 'value="2022-01-02"' in first and "<option selected>imported</option>" in first


def test_months_and_years_become_days_that_the_form_can_show(client):
    text = client.get("/search?q=number&since=2023&until=2024-02").text
    assert 'name="since" value="2023-01-01"' in text and 'name="until" value="2024-02-29"' in text
    assert everything(client, "/search?q=number&since=2023&until=2024-02").count("boats number 3") == 1


def test_filters_alone_list_the_newest_and_page_too(client):
    found = everything(client, "/search?status=imported&since=2022-11-11&until=2023-07-01")
    assert len(found) == len(set(found)) == 80
    assert [one.split()[0] for one in found] == ["boats"] * 40 + ["bread"] * 40


def test_filters_by_topic_and_room_hold_for_the_catalog(client):
    expected = find("spam")
    found = titles(client, f"/search?q=loss+spikes&topic={expected.topics[0]}&room={expected.room}")
    assert expected.title in found
    assert titles(client, "/search?q=loss+spikes&since=2030") == []
    text = client.get("/search?q=loss+spikes&since=2024-06&until=2024-05-31").text
    assert "From is after To" in text and "<h2><a" not in text
    answer = client.get("/api/papers/search?q=loss+spikes&since=2024-06&until=2024-05-31")
    assert answer.status_code == 400 and "since must not be after until" in answer.json()["error"]
    assert client.get("/api/papers/search?since=2024-05-31&until=2024-05").status_code == 200


@pytest.mark.parametrize("name", ["since", "until"])
@pytest.mark.parametrize("date", ["yesterday", "2024-13", "2024-02-30", "24"])
def test_a_date_that_is_none_is_refused_by_name(client, name, date):
    answer = client.get(f"/api/papers/search?q=loss&{name}={date}")
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"{name} must be a day such as 2024-05-17")


def damage(library, how):
    folder = index_folder(library)
    if how == "pointer":
        (folder / "current").write_bytes(b"\xff\xfe")
        return
    path = folder / (folder / "current").read_text() / "holders.npy"
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "garbage":
        path.write_bytes(content[:128] + b"\xff" * (len(content) - 128))


@pytest.mark.parametrize("how", ["truncated", "missing", "garbage"])
def test_a_damaged_index_is_reported_and_words_still_find(client, library, how):
    rebuild(library)
    damage(library, how)
    for _ in range(2):
        answer = client.get("/search?q=mark217")
        assert answer.status_code == 200 and "boats number 17" in answer.text
        assert "Imported papers are searched in part: the search index is damaged" in answer.text
    assert client.get("/papers/2403.00217").status_code == 200
    assert "thalweg papers index builds it again" in client.get("/health").text
    assert str(library.database.folder) not in client.get("/health").text
    rebuild(library)
    assert "in part" not in client.get("/search?q=mark217").text
    assert [one["source"] for one in client.get("/api/health").json()["problems"]] == []


def test_a_pointer_of_garbage_is_no_index(client, library):
    rebuild(library)
    damage(library, "pointer")
    assert titles(client, "/search?q=mark217") == ["boats number 17"]


def test_an_index_of_another_library_is_not_believed(client, library, tmp_path):
    other = Library(Database(tmp_path / "other"))
    for number in range(9):
        other.add([paper(number, f"stranger {number}", "of another library")])
    rebuild(other)
    index_folder(other).rename(index_folder(library))
    answer = client.get("/search?q=mark217")
    assert "boats number 17" in answer.text and "of other papers" in answer.text


def test_many_papers_without_an_index_are_found_in_part_and_it_is_said(client, library, monkeypatch):
    monkeypatch.setattr(fresh_papers, "MOST", 50)
    text = client.get("/search?q=gardens").text
    assert "gardens number 3" in text and "imported papers are not in the search index" in text


def test_many_newer_versions_count_as_papers_that_the_index_lacks(client, library, monkeypatch):
    for one in (fresh_papers, library_health):
        monkeypatch.setattr(one, "MOST", 2)
    monkeypatch.setattr(health, "LASTS", 0.0)
    rebuild(library)
    for number in (100, 101):
        library.add([paper(number, f"zebra number {number}", "stripes")])
    assert len(titles(client, "/search?q=zebra+stripes")) == 2
    assert "in part" not in client.get("/search?q=zebra").text
    assert client.get("/api/health").json()["state"] == "good"
    library.add([paper(102, "zebra number 102", "stripes")])
    assert len(titles(client, "/search?q=zebra+stripes")) == 2, "the latest of them"
    assert "imported papers are not in the search index" in client.get("/search?q=zebra").text
    assert "more than 2 of 121 came or changed later: thalweg papers index" in client.get("/health").text


@pytest.mark.parametrize("column", ["title", "abstract", "topics", "room", "published"])
def test_a_corrupt_row_does_not_keep_the_others_from_being_found(client, library, column):
    with library.database.write() as on:
        on.execute(f"UPDATE imported SET {column} = ? WHERE id = '2403.00217'", (b"\xff{not json",))
    for _ in range(2):
        assert "boats number 16" in titles(client, "/search?q=boats+mark216")
        rebuild(library)


def test_similar_papers_of_an_imported_one_are_of_its_subject_and_not_itself(client, library):
    rebuild(library)
    found = client.get("/api/papers/2403.00217/similar?limit=8").json()
    imported = [one["title"] for one in found if one["paper"]["thalweg"]["status"] == "imported"]
    assert len(imported) >= 3 and {one.split()[0] for one in imported} == {"boats"}
    assert "boats number 17" not in imported
    assert imported[0] in client.get("/papers/2403.00217").text


def test_similar_papers_of_the_catalog_are_those_of_the_same_matter(client):
    keys = [one["paper"]["thalweg"]["key"] for one in client.get("/api/papers/galore/similar?limit=4").json()]
    assert "galore" not in keys and {"fira", "q-galore"} <= set(keys)


def test_the_page_says_what_judged_meaning(client, monkeypatch):
    assert "by word and by meaning (" in client.get("/search?q=loss").text
    assert "latent semantic analysis)" in client.get("/search?q=loss").text


def test_a_database_that_cannot_be_read_leaves_the_catalog(client, library, monkeypatch):
    def broken(*_):
        raise sqlite3.DatabaseError("disk image is malformed")

    monkeypatch.setattr(Library, "stream", broken)
    assert find("spam").title in titles(client, "/search?q=loss+spikes")
    assert "imported papers cannot be searched: disk image is malformed" in client.get("/health").text


def test_the_command_builds_the_index_and_an_import_of_few_papers_does_too(tmp_path):
    lines = tmp_path / "papers.jsonl"
    lines.write_text('{"id": "2403.00001", "title": "A zebra", "abstract": "stripes"}\n')
    run = CliRunner().invoke(command, ["papers", "import", str(lines), "--data", str(tmp_path / "desk")])
    assert run.exit_code == 0 and "1 papers in the search index" in run.stdout
    again = CliRunner().invoke(command, ["papers", "import", str(lines), "--data", str(tmp_path / "desk")])
    assert "in the search index" not in again.stdout
    built = CliRunner().invoke(command, ["papers", "index", "--data", str(tmp_path / "desk")])
    assert (built.exit_code, built.stdout) == (0, "1 papers in the search index\n")
    client = TestClient(create_app(folder=tmp_path / "desk"))
    assert titles(client, "/search?q=zebra") == ["A zebra"]


@pytest.mark.parametrize("page", ["/search", "/search?q=zzzzqqqq"])
def test_the_example_questions_have_measured_papers_for_their_first_answers(tmp_path, page):
    client = TestClient(create_app(folder=tmp_path))
    main = client.get(page).text.partition("<main")[2]
    examples = re.findall(r'href="(/search\?q=[^"]+)"', main)
    assert len(examples) == 2
    for one in examples:
        rows = client.get(one).text.split("<article>")[1:4]
        assert all('class="verdict reproduced"' in row for row in rows[:2]), one
