"""Papers that an earlier version stored twice become one, with what was said of them, whenever stopped."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from thalweg.cli import app as command
from thalweg.desk.database import Database
from thalweg.desk.imported import checked
from thalweg.desk.imported_search import rebuild
from thalweg.desk.ledger import Ledger
from thalweg.desk.library import Library
from thalweg.desk.shelf import Shelf
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.tagging import Tags
from thalweg.desk.wants import Wants

TITLE = "Loss spikes of Adam: a study in two parts"
THEIRS, ARCHIVED = "2405.11111", "pwc:loss-spikes-of-adam"
TAGS = Tags(("loss spikes",), "optim", ("loss spike",))


@pytest.fixture
def library(database):
    return Library(database, tags=lambda texts: [TAGS] * len(texts))


def paper(name: str, title: str = TITLE, **more):
    return checked({"id": name, "title": title, "published": "2024-05-17", **more})


def store(library: Library, *papers) -> None:
    """Keep papers as if nobody had looked at their titles."""
    library.add([checked({**one.__dict__, "title": one.id}) for one in papers])
    with library.database.write() as on:
        on.executemany(
            "UPDATE imported SET title = ?1, plain = plain_title(?1) WHERE id = ?2",
            [(one.title, one.id) for one in papers],
        )


@pytest.mark.parametrize("first", [ARCHIVED, THEIRS])
def test_twins_become_one_row_to_which_both_ids_lead(library, first):
    second = THEIRS if first == ARCHIVED else ARCHIVED
    known = {ARCHIVED: {"repository": "https://github.com/a/b", "published": "2024-01-31"}, THEIRS: {}}
    store(library, paper(first, **known[first]))
    store(library, paper(second, f"{TITLE}!", **known[second]))
    change = library.newest_change()
    assert library.count() == 2 and library.label_counts("topic") == {"loss spikes": 2}
    assert library.join_twins() == 1
    assert library.newest_change() > change, "pages that are kept are made anew"
    assert library.days() == [("2024-05-17", 1)] and len(list(library.stream())) == 1
    for name in (THEIRS, ARCHIVED):
        found = library.by_id(name)
        assert (found.id, found.repository) == (THEIRS, "https://github.com/a/b")
    for kind, name in (("topic", "loss spikes"), ("room", "optim"), ("finding", "loss spike")):
        assert library.label_counts(kind) == {name: 1} and len(library.with_labels({kind: name}, 9)) == 1
    change = library.newest_change()
    assert library.join_twins() == 0 and library.newest_change() == change
    assert library.add([paper(ARCHIVED), paper(THEIRS)]).new == 0 and library.count() == 1


def test_two_of_one_source_short_titles_and_other_titles_stay_as_they_are(library):
    store(
        library,
        paper(THEIRS),
        paper("2405.22222"),
        paper("pwc:b", "Too short"),
        paper("doi:10.1/b", "Too short"),
    )
    store(library, paper("pwc:c", f"{TITLE}, continued"))
    assert library.join_twins() == 0 and library.count() == 5


def test_of_papers_without_an_arxiv_id_the_first_stays_and_takes_the_day_of_the_other(library):
    store(library, paper("doi:10.1/a", published=""))
    store(library, paper(ARCHIVED, link="https://a.example/x"), paper("openreview:a"))
    assert library.join_twins() == 2
    found = library.by_id("openreview:a")
    assert (found.id, found.date, found.link) == ("doi:10.1~a", "2024-05-17", "https://a.example/x")
    assert library.days() == [("2024-05-17", 1)]
    assert library.with_labels({"topic": "loss spikes"}, 9) == [("2024-05-17", 1)]


def test_votes_comments_and_what_was_mailed_go_along(library, database):
    store(library, paper(ARCHIVED), paper(THEIRS))
    with database.write() as on:
        for person in (1, 2):
            row = (person, f"p{person}", f"p{person}")
            on.execute("INSERT INTO people VALUES (?, ?, ?, 'member', '', 0)", row)
        on.executemany("INSERT INTO votes VALUES (?, ?, 0)", [(ARCHIVED, 1), (ARCHIVED, 2), (THEIRS, 2)])
        on.execute(
            "INSERT INTO comments (paper, person, text, at) VALUES (?, 1, 'So.', 0)",
            (ARCHIVED,),
        )
    them = Subscriptions(database)
    _, token = them.claim(them.ask("ada@example.org", "daily", Wants(), 1.0), 1.0)
    who = them.confirm(token, 1.0)
    Ledger(database).begin(who.id, "2026-11-01", "<m>", [ARCHIVED], 1.0)
    library.join_twins()
    votes = database.rows("SELECT paper, person FROM votes ORDER BY person")
    assert [tuple(row) for row in votes] == [(THEIRS, 1), (THEIRS, 2)]
    assert [row["paper"] for row in database.rows("SELECT paper FROM comments")] == [THEIRS]
    assert Ledger(database).had(who.id) == {THEIRS}


def test_a_new_version_whose_title_is_that_of_another_paper_ends_that_one(library):
    library.add([paper(ARCHIVED), paper(THEIRS, "Another title at the beginning")])
    assert library.add([paper(THEIRS, updated="2024-06-01")]).newer == 1
    assert library.count() == 1 and library.by_id(ARCHIVED).id == THEIRS


def test_a_search_gives_what_became_one_once(library):
    store(library, paper(ARCHIVED, abstract="zebra stripes"), paper(THEIRS, abstract="zebra stripes"))
    rebuild(library)
    shelf = Shelf(library)
    assert len([one for one, _ in shelf.search("zebra stripes") if one.title == TITLE]) == 2
    library.join_twins()
    assert [one.id for one, _ in shelf.search("zebra stripes") if one.title == TITLE] == [THEIRS]


@pytest.mark.parametrize("words", [["index"], ["import", "papers.jsonl"]])
def test_both_commands_do_it(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers.jsonl").write_text('{"id": "2403.00001", "title": "A zebra"}\n')
    library = Library(Database(tmp_path / "desk"))
    store(library, paper(ARCHIVED), paper(THEIRS))
    run = CliRunner().invoke(command, ["papers", *words, "--data", "desk"])
    assert run.exit_code == 0 and "papers that were stored twice and are one now: 1" in run.output
    assert library.by_id(ARCHIVED).id == THEIRS


def test_nothing_that_is_asked_on_the_way_walks_a_table(library):
    asked = []
    store(library, paper(ARCHIVED))
    store(library, paper(THEIRS, abstract="stripes"))
    library.database.connection.set_trace_callback(asked.append)
    library.join_twins()
    library.add([paper(THEIRS, abstract="more stripes")])
    assert library.behind(0, 9, 9) == len(list(library.replaced(0, 9, 9))) == 1
    library.database.connection.set_trace_callback(None)
    asked = [sql for sql in asked if sql.startswith(("SELECT", "UPDATE", "DELETE")) and "sqlite_" not in sql]
    assert len(asked) > 15
    for sql in asked:
        plan = [row["detail"] for row in library.database.rows(f"EXPLAIN QUERY PLAN {sql}")]
        assert not re.search("SCAN (imported|aliases|labels|labelled|days|replaced)", str(plan)), (sql, plan)
        assert "change > " not in sql or "replaced_by_change" in str(plan), (sql, plan)


JOIN = """
import sys
from thalweg.desk import library
from thalweg.desk.database import Database
library.AT_ONCE = 20
library.Library(Database(sys.argv[1])).join_twins()
"""


def test_killed_in_the_middle_nothing_is_lost_and_the_next_time_ends_it(tmp_path):
    before = Library(Database(tmp_path / "before"), tags=lambda texts: [TAGS] * len(texts))
    count = 4000
    titles = [f"Loss spikes of Adam, a study of part {number}" for number in range(count)]
    store(before, *(paper(f"2405.{number:05}", title) for number, title in enumerate(titles)))
    store(before, *(paper(f"pwc:{number}", title) for number, title in enumerate(titles)))
    for attempt in range(10):  # on a busy machine the kill may come too late
        folder = shutil.copytree(tmp_path / "before", tmp_path / f"after {attempt}")
        library = Library(Database(folder))
        process = subprocess.Popen([sys.executable, "-c", JOIN, str(folder)])
        while library.count() == 2 * count and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
        left = library.count()
        if left > count:
            break
    assert count < left < 2 * count
    rows = library.database.rows
    assert left == len(list(library.stream())) == library.label_counts("topic")["loss spikes"]
    assert rows("SELECT count(*) FROM labelled")[0][0] == 3 * left
    assert rows("SELECT count(*) FROM aliases")[0][0] == 2 * count - left
    assert library.join_twins() == left - count
    assert library.count() == count and library.by_id("pwc:3999").id == "2405.03999"
    assert rows("PRAGMA integrity_check")[0][0] == "ok"
