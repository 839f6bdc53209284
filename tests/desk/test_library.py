"""Imported papers: kept once each, the latest version of each, found by index, merged with the catalog."""

from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from thalweg.desk.database import Database
from thalweg.desk.imported import checked
from thalweg.desk.library import SCHEMA, Library
from thalweg.desk.shelf import Shelf
from thalweg.desk.tagging import Tags
from thalweg.papers import find, load


def row(number: int, day: str = "2024-05-17", **more):
    return {"id": f"2405.{number:05}v1", "title": f"Paper {number}", "published": day, **more}


def days(count: int) -> list[str]:
    first = datetime.date(2023, 11, 1)
    return [(first + datetime.timedelta(days=3 * number)).isoformat() for number in range(count)]


@pytest.fixture
def library(tmp_path):
    return Library(Database(tmp_path), tags=lambda texts: [Tags()] * len(texts))


def test_a_paper_is_kept_once_and_a_later_version_replaces_it(library):
    first = checked(row(1, updated="2024-05-17", title="First", repository="https://github.com/a/b"))
    second = checked(row(1, updated="2024-06-01T10:00:00Z", title="Second"))
    assert library.add([first]) == (1, 0, 0)
    before = library.newest_change()
    assert library.add([first, first]) == (0, 0, 1)
    assert library.newest_change() == before, "nothing changed, so no index is stale"
    assert library.add([second]) == (0, 1, 0)
    assert library.add([first]) == (0, 0, 1), "an old version does not come back"
    found = library.by_id("2405.00001v7")
    assert (found.title, found.repository) == ("Second", "https://github.com/a/b")
    assert library.newest_change() > before
    assert library.count() == 1


def test_numbers_of_papers_are_never_given_again(library):
    library.add([checked(row(number)) for number in range(1, 4)])
    with library.database.write() as on:
        on.execute("DELETE FROM imported WHERE paper = 3")
    library.add([checked(row(9))])
    assert [one.row for one in library.stream()] == [1, 2, 4]
    assert [one.title for one in library.stream(after=2)] == ["Paper 9"]
    assert [one.title for one in library.by_rowid([4, 77, 1])] == ["Paper 9", "Paper 1"]


def test_a_failed_batch_leaves_nothing(library):
    def papers():
        yield checked(row(1))
        raise OSError("the line went dead")

    with pytest.raises(OSError, match="line"), library.database.write() as on:
        library.add([checked(row(2))], on)
        library.add(papers(), on)
    assert library.count() == 0 and list(library.stream()) == []


def test_labels_follow_their_papers(tmp_path):
    guesses = iter([[Tags(("spikes", "adam"), "optim", ("loss spike",))] * 3, [Tags(("adam",))]])
    library = Library(Database(tmp_path), tags=lambda texts: next(guesses))
    library.add([checked(row(number, f"2024-05-1{number}")) for number in range(3)])
    assert library.label_counts("topic") == {"spikes": 3, "adam": 3}
    assert [day for day, _ in library.with_labels({"topic": "spikes", "room": "optim"}, 2)] == [
        "2024-05-12",
        "2024-05-11",
    ]
    library.add([checked(row(1, "2024-05-11", updated="2025-01-01"))])
    assert library.label_counts("topic") == {"spikes": 2, "adam": 3}
    assert library.label_counts("finding") == {"loss spike": 2}
    assert len(library.with_labels({"topic": "spikes"}, 9)) == 2
    assert library.with_labels({"topic": "nothing has this"}, 9) == []


def test_every_question_of_a_page_is_answered_by_an_index(library, monkeypatch):
    asked = []
    monkeypatch.setattr(
        library.database, "rows", lambda sql, values=(): asked.append((sql, tuple(values))) or []
    )
    library.by_rowid([1])
    library.of_day("2024-05-17", 0, 30)
    library.newest(30)
    monkeypatch.setattr(library, "label_numbers", lambda labels: [1, 2])
    library.with_labels({"topic": "a", "room": "b"}, 30)
    list(library.stream())
    monkeypatch.undo()
    assert len(asked) == 5
    for sql, values in asked:
        plan = [one["detail"] for one in library.database.rows(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert not [one for one in plan if "SCAN imported" in one and "USING INDEX" not in one], (sql, plan)
        assert not [one for one in plan if "TEMP B-TREE" in one], (sql, plan)


def test_within_a_day_the_latest_submission_is_first_however_they_came(library):
    hours = [9, 23, 0, 17]
    library.add([checked(row(hour, f"2024-05-17T{hour:02}:30:00Z")) for hour in hours])
    library.add([checked(row(50)), checked(row(51, "2024-05-18T02:00:00+05:00"))])
    in_order = ["Paper 23", "Paper 51", "Paper 17", "Paper 9", "Paper 0", "Paper 50"]
    assert [one.title for one in library.of_day("2024-05-17", 0, 9)] == in_order
    assert [one.title for one in library.newest(9)] == in_order
    assert library.add([checked(row(23, "2024-05-17T23:30:00Z"))]).known == 1


def test_a_library_of_an_older_version_keeps_its_papers_and_no_days_that_have_not_come(tmp_path):
    database = Database(tmp_path)
    database.ensure("library", SCHEMA[:1])
    with database.write() as on:
        for number, day in ((1, "2999-01-01"), (2, "2024-05-17")):
            on.execute(
                "INSERT INTO imported VALUES "
                "(?, ?, 'A title', '', '[]', ?, ?, '[]', '', '', '', 'file', '[\"adam\"]', '', '[]', 1.7e9)",
                (number, f"x:{number}", day, day),
            )
            on.execute("INSERT INTO days VALUES (?, 1)", (day,))
            on.execute("INSERT INTO labelled VALUES (1, ?, ?)", (day, number))
        on.execute("INSERT INTO labels VALUES (1, 'topic', 'adam', 2)")
    library = Library(database)
    assert library.days() == [("2023-11-14", 1), ("2024-05-17", 1)]
    assert [one.id for one in library.newest(9)] == ["x:2", "x:1"]
    assert library.with_labels({"topic": "adam"}, 9) == [("2024-05-17", 2), ("2023-11-14", 1)]


def test_pages_hold_every_paper_of_both_once_in_order(library):
    library.add([checked(row(number, day)) for number, day in enumerate(days(100))])
    shelf = Shelf(library)
    total = shelf.order.count()
    assert total == 100 + len(load())
    found = [one for start in range(0, total, 7) for one in shelf.order.page(start, 7)]
    assert len({one.key for one in found}) == total
    assert [one.date for one in found] == sorted((one.date for one in found), reverse=True)
    month = shelf.order.page(0, 999, "2024-05", "2024-05-31")
    assert {one.key for one in month} == {one.key for one in found if one.date.startswith("2024-05")}
    assert shelf.order.older("2024-05-17", (10,)) == max(day for day in days(100) if day < "2024-05-17")
    assert shelf.order.newer("2024-05-17", (10,)) == min(day for day in days(100) if day > "2024-05-17")


@pytest.mark.parametrize("authors", [(), ("Jia Zhao", "Bo Li")])
def test_a_paper_of_the_catalog_that_is_imported_is_one_paper(library, monkeypatch, authors):
    entry = replace(find("galore"), authors=authors, organisation="")
    others = tuple(one for one in load() if one.key != "galore")
    monkeypatch.setattr("thalweg.desk.shelf.load", lambda: (*others, entry))
    shelf = Shelf(library)
    before = shelf.order.count()
    assert shelf.paper("galore").date == "2024-03"
    library.add(
        [
            checked(
                {
                    "id": f"{entry.arxiv}v2",
                    "title": "?",
                    "published": "2024-03-06",
                    "authors": ["J. Zhao"],
                    "organisation": "University of Nowhere",
                }
            )
        ]
    )
    found = shelf.paper(f"{entry.arxiv}v2")
    assert found == shelf.paper("galore")
    assert (found.title, found.date) == (entry.title, "2024-03-06")
    assert (found.authors, found.organisation) == (authors or ("J. Zhao",), "University of Nowhere")
    assert shelf.order.count() == before
    assert [one.key for one in shelf.order.page(0, 9, "2024-03-06", "2024-03-06")] == ["galore"]
    assert "galore" not in {one.key for one in shelf.of_month("2024-03")}


def test_a_topic_lists_catalog_and_imported_papers_by_date(tmp_path):
    library = Library(Database(tmp_path), tags=lambda texts: [Tags(("loss spikes",), "optim")] * len(texts))
    library.add([checked(row(number, day)) for number, day in enumerate(days(40))])
    shelf = Shelf(library)
    found = shelf.chosen(topic="loss spikes", room="optim", count=99)
    ours = {one.key for one in load() if "loss spikes" in one.topics and one.room == "optim"}
    assert {one.key for one in found} == ours | {f"2405.{number:05}" for number in range(40)}
    assert [one.date for one in found] == sorted((one.date for one in found), reverse=True)
    pages = [
        shelf.chosen(topic="loss spikes", room="optim", start=start, count=5) for start in range(0, 60, 5)
    ]
    assert tuple(one for page in pages for one in page) == found
    assert {one.key for one in shelf.chosen(state="imported", count=99)} == {
        f"2405.{number:05}" for number in range(40)
    }
    assert dict(shelf.topics)["loss spikes"] == 40 + sum("loss spikes" in one.topics for one in load())


def test_what_the_catalog_takes_over_is_counted_once_under_its_labels(tmp_path, monkeypatch):
    tags = Tags(("loss spikes", "zebra"), "optim", ("loss spike",))
    library = Library(Database(tmp_path), tags=lambda texts: [tags] * len(texts))
    monkeypatch.setattr("thalweg.desk._library_writing.load", tuple)
    spam, galore = find("spam"), find("galore")
    library.add(
        [
            checked({"id": spam.arxiv, "title": "?"}),
            checked({"id": "pwc:spam", "title": spam.title}),
            checked({"id": "pwc:galore", "title": galore.title}),
            checked(row(1)),
        ]
    )
    assert library.label_counts("topic") == {"loss spikes": 4, "zebra": 4}
    shelf = Shelf(library)
    for topic, count in dict(shelf.topics).items():
        assert len(shelf.chosen(topic=topic, count=count + 9)) == count, topic
    assert dict(shelf.topics)["zebra"] == 1
    assert [(name, found[0], len(found[1])) for name, found in shelf.addressing(9).items()] == [
        ("loss spike", 1, 1)
    ]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"id": "grokfast"}, "id must be an arXiv id, or prefix:name"),
        ({"title": "  "}, "title must not be empty"),
        ({"title": "half \ud800"}, "half of a character"),
        ({"title": ["a"]}, "title must be text"),
        ({"authors": "A. Author"}, "authors must be a list"),
        ({"published": "2024-02-30"}, "published must be a day"),
        ({"link": "javascript:alert(1)"}, "link must be an address"),
        ({"repository": 'https://a"b'}, "repository must be an address"),
        ({"categories": ["cs.LG; DROP"]}, "categories must be such as cs.LG"),
        ({"abstract": "x" * 20_001}, "abstract must have at most 20000 characters"),
    ],
)
def test_a_wrong_field_is_refused_by_name(wrong, why):
    with pytest.raises(ValueError, match=why):
        checked(row(1) | wrong)


def test_what_is_taken_is_made_plain():
    found = checked(
        {
            "id": "arXiv:hep-th/9901001v3",
            "title": " A\n title \x07",
            "authors": ["A", {"name": "B "}, None],
            "published": "1999-01-01T23:30:00-05:00",
        }
    )
    assert (found.id, found.title, found.authors) == ("hep-th/9901001", "A title", ("A", "B"))
    assert (found.published, found.updated) == ("1999-01-02", "1999-01-02")
    assert found.link == "https://arxiv.org/abs/hep-th/9901001"
    assert checked({"id": "2405.20233", "title": "x"}).published == "2024-05"
