"""The index ranks as one would who reads every paper: by word, by meaning, within filters."""

from __future__ import annotations

import math
import zlib
from collections import Counter

import numpy as np
import pytest

from thalweg.desk.index.counts import count
from thalweg.desk.index.filters import Filters, within
from thalweg.desk.index.meaning import Meaning
from thalweg.desk.index.search_index import SearchIndex
from thalweg.papers.meaning import terms


@pytest.fixture(scope="module")
def index(folder):
    return SearchIndex(folder)


@pytest.fixture(scope="module")
def questions(generator):
    source = np.random.default_rng(1)
    asked = [generator.question(source, int(source.integers(240)), 5 + i % 12) for i in range(50)]
    return [question for question in asked if len(terms(question)) > 2]


@pytest.fixture(scope="module")
def documents(made):
    return [Counter(terms(one.title) * 2 + terms(one.abstract)) for one in made]


def bm25(question, documents):
    """Robertson and Zaragoza (2009), equation 3.15, k1 = 1.2, b = 0.75, written from the paper."""
    lengths = [sum(one.values()) for one in documents]
    mean = sum(lengths) / len(lengths)
    scores = np.zeros(len(documents))
    for word in set(terms(question)):
        holding = sum(word in one for one in documents)
        rarity = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
        for i, one in enumerate(documents):
            if word in one:
                relative = 1 - 0.75 + 0.75 * lengths[i] / mean
                scores[i] += rarity * one[word] * 2.2 / (one[word] + 1.2 * relative)
    return scores


def share_found(found, expected):
    return len(set(found) & set(expected)) / len(expected)


def test_by_word_it_ranks_as_bm25_over_every_paper_does(index, made, questions, documents):
    shares = []
    for question in questions:
        scores = bm25(question, documents)
        expected = [made[i].row for i in np.argsort(-scores)[:10] if scores[i] > 0]
        shares.append(share_found(index.rankings(question, depth=10).by_word, expected))
    assert np.mean(shares) > 0.95
    assert min(shares) >= 0.7  # worths are kept in a byte, which may turn round neighbours


def test_every_paper_that_holds_a_word_is_found_by_it_and_no_other(index, made, documents):
    (word,) = Counter(word for one in documents for word in one).most_common(40)[39:]
    holding = {made[i].row for i, one in enumerate(documents) if word[0] in one}
    asked = next(w for one in made for w in one.abstract.split() if terms(w) == [word[0]])
    assert set(index.rankings(asked, depth=2000).by_word) == holding


def test_by_meaning_it_finds_what_exact_cosines_find(folder, index, made, questions):
    exact = Meaning.open(folder / index.stamp)
    vectors = exact.project(count([(one.title, one.abstract) for one in made]))
    shares = []
    for question in questions:
        cosines = vectors @ exact.project(count([("", question)]))[0]
        least = max(0.25, cosines.max() / 2 + 0.02)  # below, the index leaves out what is near to nothing
        expected = [made[i].row for i in np.argsort(-cosines)[:10] if cosines[i] > least]
        found = index.rankings(question, depth=10).by_meaning
        shares += [share_found(found, expected)] if expected else []
        for row, cosine in found.items():
            assert abs(cosine - cosines[row // 2]) < 0.02
    assert len(shares) > 20
    assert np.mean(shares) >= 0.9


def test_directions_keep_most_of_what_the_best_ones_would(folder, index, documents):
    """Against numpy's dense decomposition of the same table, of which nothing is sampled or iterated."""
    held = Counter(word for one in documents for word in one)
    kept = sorted(word for word, times in held.items() if times >= 5)
    column = {word: i for i, word in enumerate(kept)}
    table = np.zeros((len(documents), len(kept)))
    for row, one in enumerate(documents):
        for word, times in one.items():
            if word in column:
                rarity = math.log((1 + len(documents)) / (1 + held[word])) + 1
                table[row, column[word]] = rarity * (1 + math.log(times))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    best = (np.linalg.svd(table, compute_uv=False)[:64] ** 2).sum()
    found = Meaning.open(folder / index.stamp)
    stems = {number: i for i, number in enumerate(found.terms.tolist())}
    order = [stems[zlib.crc32(word.encode())] for word in kept]
    rarity = np.array([math.log((1 + len(documents)) / (1 + held[word])) + 1 for word in kept])
    directions = found.weights[order] / rarity[:, None]
    assert np.allclose(directions.T @ directions, np.eye(64), atol=1e-3)
    assert ((table @ directions) ** 2).sum() > 0.8 * best


@pytest.mark.parametrize(
    "filters",
    [
        Filters(room="optim"),
        Filters(topic="field 3"),
        Filters(topic="topic 7", room="probe"),
        Filters(since="2010-06-15"),
        Filters(until="2003"),
        Filters(since="2004-02", until="2004-03", room="optim"),
        Filters(topic="field 3", since="2008", until="2015-05-05"),
        Filters(rows=frozenset([*range(-3, 3000, 7), 10**9])),
        Filters(room="optim", rows=frozenset(range(0, 9000, 3))),
    ],
    ids=str,
)
def test_filters_leave_the_order_and_drop_exactly_what_they_name(index, made, generator, filters):
    question = generator.question(np.random.default_rng(5), 7, 8)
    passing = {
        one.row
        for one in made
        if filters.holds(one.row)
        and filters.topic in ("", *one.topics)
        and filters.room in ("", one.room)
        and (not filters.since or one.day >= filters.since[: len(one.day)])
        and (not filters.until or one.day[: len(filters.until)] <= filters.until)
    }
    assert 0 < len(passing) < len(made)
    everything = index.rankings(question, depth=len(made))
    some = index.rankings(question, filters, depth=20)
    assert some.by_word == [row for row in everything.by_word if row in passing][:20]
    meant = [row for row in everything.by_meaning if row in passing][:20]
    assert list(some.by_meaning) == meant


@pytest.mark.parametrize(
    "filters",
    [
        *[Filters(room="kitchen"), Filters(topic="none"), Filters(since="2030")],
        *[Filters(rows=frozenset()), Filters(rows=frozenset([10**9]))],
    ],
)
def test_a_filter_that_nothing_passes_finds_nothing(index, filters):
    assert index.rankings("a", filters) == ([], {})


def test_a_month_meets_every_range_that_touches_it_and_an_unknown_day_none():
    assert within("2024-05", "2024-05-20", "") and within("2024-05", "", "2024-05-02")
    assert within("2024-05-17", "2024", "2024") and not within("2024-05-17", "2024-05-18", "")
    assert not within("", "1900", "") and not within("", "", "2100") and within("", "", "")


HOSTILE = [
    '"',
    "NEAR(a b)",
    "a* OR -b ^c",
    "'; DROP TABLE x; --",
    "\x00",
    "🦆 наука",
    "x" * 9000,
    "\ud800",
    "",
]


@pytest.mark.parametrize("question", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_makes_it_fail(index, question):
    assert len(index.rankings(question).by_word) <= 60


def test_a_paper_is_nearest_to_itself_and_then_to_its_topic(index, made):
    of_field = []
    for one in made[::200]:
        assert next(iter(index.near(one.title, one.abstract))) == one.row
        near = index.near(one.title, one.abstract, without=one.row)
        assert one.row not in near and len(near) == 10
        of_field += [made[row // 2].topics[0] == one.topics[0] for row in near]
    assert np.mean(of_field) > 0.3  # one field in twenty by chance
