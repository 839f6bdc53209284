"""A paper that comes under several ids is one: on the pages, in votes and comments, in the mail."""

from __future__ import annotations

import time

import pytest

from thalweg.desk.catalog_keys import follow_catalog
from thalweg.desk.database import Database
from thalweg.desk.digests import News
from thalweg.desk.imported import checked
from thalweg.desk.ledger import Ledger
from thalweg.desk.library import SCHEMA, Library
from thalweg.desk.novelty import first_seen
from thalweg.desk.same_paper import may_be_same, plain_title
from thalweg.desk.shelf import Shelf
from thalweg.desk.subscriptions import Subscriptions
from thalweg.desk.wants import Wants
from thalweg.papers import find, load

TITLE = "Loss Spikes of Schrödinger's Adam: a Study"
OURS = next(entry for entry in load() if not entry.arxiv and plain_title(entry.title))
THEIRS, ARCHIVED = "2405.11111", "pwc:loss-spikes-of-a-study"


def paper(name: str, title: str = TITLE, **more):
    return checked({"id": name, "title": title, "published": "2024-05-17", **more})


def vote(database, key: str, person: int = 1) -> None:
    with database.write() as on:
        on.execute(
            "INSERT OR IGNORE INTO people (id, name, folded, role, password, since) "
            "VALUES (?, ?, ?, '', '', 0)",
            (person, f"p{person}", f"p{person}"),
        )
        on.execute("INSERT INTO votes VALUES (?, ?, 0)", (key, person))


def votes(database) -> list[tuple[str, int]]:
    return [tuple(row) for row in database.rows("SELECT paper, person FROM votes ORDER BY paper, person")]


@pytest.fixture
def library(database):
    return Library(database)


def test_a_title_is_its_letters_and_digits():
    assert plain_title("  LOSS spikes, of {Schro\u0308dinger's} Adam:\na study?") == plain_title(TITLE)
    assert plain_title(TITLE) == "lossspikesofschrodingersadamastudy"
    assert plain_title("Layer normalization") == "" == plain_title(None)
    assert (
        may_be_same("2405.11111", "pwc:a")
        and may_be_same("doi:10/a", "pwc:a")
        and may_be_same("spam", "2405.11111")
    )
    assert not may_be_same("2405.11111", "hep-th/9901001") and not may_be_same("pwc:a", "pwc:a-1")


@pytest.mark.parametrize("first", [ARCHIVED, THEIRS])
def test_a_paper_of_an_archive_and_of_arxiv_is_one_in_either_order(library, first):
    second = THEIRS if first == ARCHIVED else ARCHIVED
    assert library.add([paper(first, abstract=first, link="https://a.example/x")]) == (1, 0, 0)
    row = next(library.stream()).row
    library.add([paper(second, TITLE.upper(), abstract=second)])
    assert library.count() == 1 and [one.row for one in library.stream()] == [row]
    for name in (THEIRS, ARCHIVED):
        found = library.by_id(name)
        assert (found.id, found.summary) == (THEIRS, THEIRS)
    before = library.newest_change()
    assert library.add([paper(first), paper(second)]).new == 0 and library.count() == 1
    assert library.by_id(ARCHIVED).link.endswith(THEIRS) or first == THEIRS
    assert library.set_repositories({ARCHIVED: "https://github.com/a/b"}) == 1
    assert library.by_id(THEIRS).repository == "https://github.com/a/b" and library.newest_change() > before


def test_in_one_batch_too_and_two_of_one_source_stay_two(library):
    assert library.add([paper(ARCHIVED), paper("doi:10.1/a"), paper(THEIRS)]) == (1, 0, 2)
    assert library.by_id("doi:10.1~a").id == THEIRS
    assert library.add([paper("2405.22222"), paper("2405.33333", "Too short")]).new == 2
    assert library.add([paper("pwc:too-short", "Too short")]).new == 1
    assert library.count() == 4


def test_the_arxiv_id_takes_votes_comments_and_what_was_mailed_along(library, database):
    library.add([paper(ARCHIVED)])
    vote(database, ARCHIVED)
    them = Subscriptions(database)
    _, token = them.claim(them.ask("ada@example.org", "daily", Wants(), 1.0), 1.0)
    who = them.confirm(token, 1.0)
    Ledger(database).begin(who.id, "2026-11-01", "<m>", [ARCHIVED], 1.0)
    library.add([paper(THEIRS)])
    assert votes(database) == [(THEIRS, 1)] and Ledger(database).had(who.id) == {THEIRS}


def test_a_paper_of_the_catalog_without_an_arxiv_id_is_one_with_its_import(library, database):
    shelf = Shelf(library)
    total = shelf.order.count()
    library.add([paper(THEIRS, OURS.title.upper() + ".", authors=["Ada Arden"])])
    assert shelf.order.count() == total
    assert shelf.paper(THEIRS) == shelf.paper(OURS.key) and shelf.paper(THEIRS).title == OURS.title
    assert shelf.paper(OURS.key).link == f"https://arxiv.org/abs/{THEIRS}"
    assert library.label_counts("topic") == {}, "it is tagged by hand"
    galore = find("galore")
    library.add([paper("2405.44444", galore.title), paper("pwc:galore", galore.title)])
    assert shelf.order.count() == total + 1, "another arXiv id is another paper, whatever its title"


def test_what_was_said_before_the_catalog_had_it_follows(library, database):
    library.add([paper(THEIRS, OURS.title)])
    for key, person in ((THEIRS, 1), (THEIRS, 2), (OURS.key, 2)):
        vote(database, key, person)
    follow_catalog(database, "votes")
    assert votes(database) == [(OURS.key, 1), (OURS.key, 2)]


def test_a_paper_is_mailed_once_though_the_catalog_knows_it_by_another_name(library, database):
    them, shelf, now = Subscriptions(database), Shelf(library), time.time()
    _, token = them.claim(them.ask("ada@example.org", "daily", Wants(), now), now)
    who, ledger = them.confirm(token, now), Ledger(database)
    library.add([paper(THEIRS, OURS.title)])
    ledger.begin(who.id, "before", "<m>", [THEIRS], now)
    first_seen(database, [one for one in shelf.papers if one.key != OURS.key], now - 9e6)
    new = News(database, shelf, now, now)
    assert OURS.key in {one.paper.key for one in new.items}
    assert OURS.key not in {one.key for one in new.digest(who, ledger, "today").papers}


def test_a_library_of_an_older_version_learns_its_titles(tmp_path):
    database = Database(tmp_path)
    database.ensure("library", SCHEMA[:1])
    columns = "id, title, abstract, authors, published, updated, categories, organisation, repository, link"
    with database.write() as on:
        on.execute(
            f"INSERT INTO imported ({columns}, source, topics, room, addresses, added) "
            f"VALUES (?, ?, '', '[]', '', '', '[]', '', '', '', 'pwc', '[]', '', '[]', 1)",
            (ARCHIVED, TITLE),
        )
        on.execute("INSERT INTO days VALUES ('', 1)")
    library = Library(database)
    assert library.add([paper(THEIRS)]) == (0, 1, 0)
    assert library.by_id(ARCHIVED).id == THEIRS
    plan = database.rows(
        "EXPLAIN QUERY PLAN SELECT id FROM imported WHERE plain IN ('a', 'b') AND plain != ''"
    )
    assert "USING INDEX imported_by_title" in plan[0]["detail"]
