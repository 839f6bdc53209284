"""What counts as new: not a catalog seen for the first time, but what an upgrade or a study brings to it."""

from __future__ import annotations

import dataclasses
import time

import pytest

from thalweg.desk.digests import SLACK, News
from thalweg.desk.fitting import Fitting
from thalweg.desk.library import Library
from thalweg.desk.new_arrivals import arrivals
from thalweg.desk.novelty import first_seen
from thalweg.desk.paper import Paper
from thalweg.desk.periods import start_of
from thalweg.desk.shelf import Shelf
from thalweg.desk.wants import Wants, checked_wants

NOW = time.time()


def test_at_first_sight_papers_count_from_their_month_and_verdicts_from_their_day(database, shelf):
    seen = first_seen(database, shelf.papers, NOW)
    assert seen.keys() == {one.key for one in shelf.papers}
    for one in shelf.papers:
        assert seen[one.key].appeared == start_of(one.date)
        assert seen[one.key].judged == (start_of(one.measured.date) if one.measured else 0)
    assert first_seen(database, shelf.papers, NOW + 99) == seen == first_seen(None, shelf.papers, NOW)


def test_a_paper_or_a_verdict_that_comes_later_is_new_then_and_stays_of_that_day(database, shelf):
    before = [one for one in shelf.papers if one.key not in ("sgdr", "galore")]
    galore = next(one for one in shelf.papers if one.key == "galore")
    unmeasured = dataclasses.replace(galore)
    unmeasured.__dict__["measured"] = None
    first_seen(database, [*before, unmeasured], NOW)
    for later in (NOW + 10, NOW + 20):
        seen = first_seen(database, shelf.papers, later)
        assert seen["sgdr"].appeared == NOW + 10
        assert seen["galore"].appeared == start_of(galore.date) and seen["galore"].judged == NOW + 10


def test_news_are_what_came_after_a_moment(database, shelf, bring):
    first_seen(database, [one for one in shelf.papers if one.key != "sgdr"], NOW - 9e6)
    bring(1, at=NOW - 1e5)
    bring(2, at=NOW + 5)
    measured_since = {one.id for one in shelf.papers if one.measured and start_of(one.measured.date) > NOW}
    found = [one.paper.id for one in News(database, shelf, NOW + SLACK, NOW + 6).items]
    assert set(found) == {"2601.00002", shelf.paper("sgdr").id} | measured_since


@pytest.mark.parametrize("since", [0, 4.5, 9.5, 10])
def test_arrivals_are_those_after_a_moment_the_latest_published_first(database, bring, since):
    for number in range(1, 11):
        bring(number, at=float(number))
    with database.write() as on:
        on.execute("DELETE FROM imported WHERE paper IN (5, 6)")
        on.execute("UPDATE imported SET published = '2020-01-01' WHERE paper = 9")
    expected = [one for one in (10, 8, 7, 4, 3, 2, 1, 9) if one > since]
    found = arrivals(Library(database), since, 100)
    assert [int(one.arxiv[-2:]) for one in found] == expected
    assert arrivals(Library(database), since, 2) == found[:2]


@pytest.mark.parametrize("few", [0, 10**9])
def test_arrivals_of_an_archive_are_the_same_by_either_index(database, bring, monkeypatch, few):
    monkeypatch.setattr("thalweg.desk.new_arrivals.FEW", few)
    bring(*range(1, 9), at=5.0)
    assert [int(one.arxiv[-2:]) for one in arrivals(Library(database), 4, 3)] == [8, 7, 6]


def test_what_nobody_wants_takes_no_place_from_what_somebody_does(database, shelf, bring, monkeypatch):
    monkeypatch.setattr("thalweg.desk.digests.MOST_IMPORTED", 50)
    bring(*range(1, 31), at=NOW)
    for batch in range(3):  # later days, other fields
        bring(*range(100 * batch + 100, 100 * batch + 117), about="variable stars in clouds", at=NOW)
    with database.write() as on:
        on.execute("UPDATE imported SET published = '2026-11-01' WHERE paper > 30")

    def found(*wants):
        news = News(database, shelf, NOW, NOW, wants)
        return {one.paper.title for one in news.items if "spikes" in one.paper.title}, news.cut

    assert [len(part) for part in found(Wants(topics=("gradient spikes",)))] == [30, 0]
    assert [len(part) for part in found(Wants(questions=("gradient spikes",)))] == [0, 1], "and that is said"
    monkeypatch.setattr("thalweg.desk.digests.MOST_IMPORTED", 20)
    titles, (cut,) = found(Wants(topics=("gradient spikes",)))
    assert len(titles) == 20 and "with the topic 'gradient spikes'" in cut


def test_a_text_of_another_field_fits_no_question_however_little_there_is():
    wheat = Paper("wheat", "Wheat yields in the Danube basin", "A survey of yields under changing rainfall.")
    spikes = Paper("spikes", "Sudden jumps of the loss", "We study jumps of the training loss with Adam.")
    words = Paper("words", "Rainfall", "Changing rainfall and yields of wheat.")
    assert Fitting([wheat, spikes])("loss spikes in training with Adam") == [False, True]
    assert Fitting([wheat, spikes, words])("wheat rainfall") == [True, False, True]
    assert Fitting([wheat, spikes])("the of and") == [False, False]
    assert Fitting([])("anything") == []


def test_wants_let_through_what_has_one_of_them():
    paper = Paper("k", "t", topics=("adam",), room="optim", addresses=("loss spike",))
    other = Paper("o", "t", topics=("grokking",), room="theory")
    for wants in (Wants(), Wants(topics=("adam",)), Wants(rooms=("optim",)), Wants(findings=("loss spike",))):
        assert wants.tagged(paper) and wants.tagged(other) == wants.everything
    assert not Wants(questions=("adam",)).tagged(paper)
    assert Wants.from_json(wants.to_json()) == wants
    assert (Wants() | wants).everything


def test_wants_are_of_this_desk_and_few():
    shelf = Shelf()
    assert checked_wants(
        shelf, [" optimizer ", "", "optimizer"], ["optim"], ["loss spike"], ["a  b"]
    ) == Wants(("optimizer",), ("optim",), ("loss spike",), ("a b",))
    with pytest.raises(
        ValueError, match=r"topic must be one of this desk's, got 'optimiser' \(did you mean optimi"
    ):
        checked_wants(shelf, ["optimiser"])
    with pytest.raises(
        ValueError, match="at most 20 topics, rooms, findings and questions can be chosen, got 21"
    ):
        checked_wants(shelf, questions=map(str, range(21)))
