"""With vectors of all papers, of some and of none the index ranks as one would who compares every paper."""

from __future__ import annotations

import bisect

import numpy as np
import pytest

from thalweg.desk.index import sentences
from thalweg.desk.index.build import build
from thalweg.desk.index.filters import Filters
from thalweg.desk.index.passages import passage
from thalweg.desk.index.search_index import SearchIndex
from thalweg.desk.index.sentences import in_one_measure
from thalweg.desk.index.vector_cache import VectorCache, text_number

from .conftest import records

COUNT = 600
PAPERS = records(COUNT)
QUESTIONS = [one.title for one in PAPERS[::67]]
TOPICS = np.random.default_rng(3).standard_normal((300, 384))


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def vectors_of(papers):
    """Made up; papers of one topic are near each other."""
    own = np.random.default_rng(4).standard_normal((len(papers), 384))
    return unit(own + 1.5 * TOPICS[[int(one.topics[1].split()[1]) for one in papers]]).astype(np.float32)


VECTORS = vectors_of(PAPERS)


def question_vector(k):
    return unit(VECTORS[67 * k] + 0.5 * unit(np.random.default_rng(k).standard_normal(384))).astype(
        np.float32
    )


def indexed(folder, which):
    """The index over all papers, of which those at ``which`` have a vector."""
    cache = VectorCache(folder)
    with cache.alone():
        numbers = [text_number(passage(PAPERS[i].title, PAPERS[i].abstract)) for i in which]
        cache.add(np.array(numbers, np.uint64), VECTORS[which])
    build(folder, PAPERS, rank=48, cache=VectorCache(folder))
    return SearchIndex(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return indexed(tmp_path_factory.mktemp("whole"), np.arange(COUNT))


SHARES = {"half": slice(0, None, 2), "the newest": slice(500, None), "three": slice(0, 300, 134)}


@pytest.fixture(scope="module", params=SHARES)
def part(request, tmp_path_factory):
    which = np.arange(COUNT)[SHARES[request.param]]
    return which, indexed(tmp_path_factory.mktemp("part"), which)


def literal(cosines, latent, which):
    """The ranking, one paper at a time: rows of papers with what each is worth."""
    if not len(which):
        least = max(0.2, latent.max() / 2)
        worth = {i: latent[i] for i in range(COUNT) if latent[i] >= least}
    else:
        ours, theirs = sorted(cosines[i] for i in which), sorted(latent[i] for i in which)
        rest = [i for i in range(COUNT) if i not in set(which.tolist())]

        def measured(s):
            k = bisect.bisect_right(theirs, s)
            if k == len(theirs):
                return min(ours[-1] + s - theirs[-1], 1)
            share = (s - theirs[k - 1]) / (theirs[k] - theirs[k - 1]) if k else 1
            return ours[k - 1] + share * (ours[k] - ours[k - 1]) if k else ours[0]

        worth = {i: cosines[i] for i in which}
        enough = max(0.2, max((latent[i] for i in rest), default=0) / 2)
        worth |= {i: measured(latent[i]) for i in rest if latent[i] >= enough}
        highest = max([*worth.values(), *(measured(latent[i]) for i in rest)])
        worth = {i: one for i, one in worth.items() if one >= max(0.24, highest / 2)}
    return {PAPERS[i].row: worth[i] for i in sorted(worth, key=lambda i: (-worth[i], -i))}


def latent_of(index, question):
    """Of every paper, by an index's own directions."""
    return index._similarity("", " ".join(question.split()))


def assert_same(found, expected, depth):
    assert len(found) == min(len(expected), depth)
    for row, worth in found.items():
        assert worth == pytest.approx(expected[row], abs=2e-3)
    ours, theirs = list(found.values()), list(expected.values())[:depth]
    assert ours == pytest.approx(theirs, abs=2e-3) and ours == sorted(ours, reverse=True)


def test_with_all_vectors_it_is_the_ranking_by_exact_cosines(whole):
    assert whole.covered == COUNT
    for k, question in enumerate(QUESTIONS):
        cosines = VECTORS @ question_vector(k)
        expected = literal(cosines, np.zeros(COUNT), np.arange(COUNT))
        assert_same(whole.rankings(question, depth=20, vector=question_vector(k)).by_meaning, expected, 20)


def test_with_some_vectors_both_kinds_are_one_ranking(part):
    which, index = part
    assert index.covered == len(which)
    kinds = set()
    for k, question in enumerate(QUESTIONS):
        cosines = VECTORS @ question_vector(k)
        expected = literal(cosines, latent_of(index, question), which)
        found = index.rankings(question, depth=30, vector=question_vector(k)).by_meaning
        assert_same(found, expected, 30)
        kinds |= {(row - 1) // 2 in set(which.tolist()) for row in found}
    assert kinds == {True, False}


def test_without_the_encoder_or_without_vectors_latent_semantic_analysis_judges(part, tmp_path):
    _, index = part
    bare = indexed(tmp_path, np.arange(0))
    for k, question in enumerate(QUESTIONS):
        alone = index.rankings(question)
        assert alone == bare.rankings(question) == bare.rankings(question, vector=question_vector(k))
        assert_same(alone.by_meaning, literal(None, latent_of(index, question), np.arange(0)), 60)


@pytest.mark.parametrize("filters", [Filters(room="optim"), Filters(topic="field 3"), Filters(since="2012")])
def test_filters_drop_exactly_what_they_name_whatever_has_a_vector(part, whole, filters):
    for index in (part[1], whole):
        allowed = set(index._labels.rows[index._labels.allowed(filters)].tolist())
        for k, question in enumerate(QUESTIONS):
            asked = {"vector": question_vector(k)}
            everything = index.rankings(question, depth=COUNT, **asked).by_meaning
            some = index.rankings(question, filters, depth=10, **asked).by_meaning
            assert list(some) == [row for row in everything if row in allowed][:10]


@pytest.mark.parametrize("exactly", [40, COUNT])
def test_of_very_many_the_best_are_still_exact_within_filters_too(whole, tmp_path, monkeypatch, exactly):
    monkeypatch.setattr(sentences, "_FEW", COUNT // 2)
    monkeypatch.setattr(sentences, "_EXACTLY", exactly)
    monkeypatch.setattr(sentences, "_CHUNK", 250)
    many = indexed(tmp_path, np.arange(COUNT))
    assert many._sentences._parts.shape == (COUNT, sentences._STRONGEST)
    shares = []
    for k, question in enumerate(QUESTIONS):
        for filters in (Filters(), Filters(room="probe")):
            asked = {"filters": filters, "depth": 8, "vector": question_vector(k)}
            expected, found = (index.rankings(question, **asked).by_meaning for index in (whole, many))
            shares += [len(expected.keys() & found.keys()) / len(expected)] if expected else []
            same = {row: expected[row] for row in found if row in expected}
            assert {row: found[row] for row in same} == pytest.approx(same, abs=1e-5)
    assert len(shares) > 10 and np.mean(shares) > (0.999 if exactly == COUNT else 0.9)


def test_vectors_of_papers_are_those_that_were_kept(part):
    which, index = part
    rows = [PAPERS[which[-1]].row, 2, PAPERS[which[0]].row, 10**6, -1]
    found = index.vectors(rows)
    assert found.shape == (5, 384) and not found[[1, 3, 4]].any()
    assert (found[[0, 2]] * VECTORS[[which[-1], which[0]]]).sum(1) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(found[[0, 2]], axis=1) == pytest.approx(1, abs=1e-5)


def test_a_newer_text_has_no_vector_and_the_old_one_is_forgotten(tmp_path):
    indexed(tmp_path, np.arange(COUNT))
    changed = [one._replace(abstract=f"{one.abstract} again") if one.row < 21 else one for one in PAPERS]
    build(tmp_path, changed, rank=16, cache=VectorCache(tmp_path))
    assert SearchIndex(tmp_path).covered == COUNT - 10 == len(VectorCache(tmp_path))


def test_a_build_without_a_cache_leaves_the_vectors_for_the_next(tmp_path):
    indexed(tmp_path, np.arange(COUNT))
    build(tmp_path, PAPERS, rank=16)
    index = SearchIndex(tmp_path)
    assert (index.covered, index.wants_sentences) == (0, False)
    assert len(VectorCache(tmp_path)) == COUNT


def test_equal_cosines_and_one_paper_have_a_measure_too():
    assert in_one_measure(np.array([0.5]), np.array([0.5, 0.5]), np.array([0.1, 0.3])) >= 0.1
    assert in_one_measure(np.array([0.2, 0.9]), np.array([0.5]), np.array([0.6])) == pytest.approx([0.6, 1])
    assert len(in_one_measure(np.empty(0), np.array([0.5]), np.array([0.6]))) == 0
