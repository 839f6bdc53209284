"""A question in, papers out: ranks by word and by meaning, fused by reciprocal rank.

The fusion is that of Cormack, Clarke and Buettcher (2009). Meaning is judged twice where a sentence
encoder is installed: latent semantic analysis knows the words of the catalog, MiniLM everyday English.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from thalweg._core.checks import check_count
from thalweg.papers.entry import Entry, load
from thalweg.papers.names import name_asked, repository_named, title_name
from thalweg.papers.words import WordIndex, content_words, tokens

if TYPE_CHECKING:
    import numpy as np

    from thalweg.papers.meaning import MeaningIndex

_DAMPING = 20  # how slowly the worth of a rank falls; 60 is usual for web-sized lists
_DEPTH = 60
_LEAST_SIMILAR = 0.15  # below which a paper has nothing to do with a question: latent semantic analysis
_LEAST_LIKE = 0.24  # the same by MiniLM, which finds gibberish as near as 0.21 to something
_LEAST_ALIKE = 0.35  # the same of two papers
_LONGEST = 100  # words of a question that are read
_MOST_TOLD = 20  # words of a question that are looked for in a paper to say why it was found
_LATENT, _SENTENCES = "latent semantic analysis", "MiniLM"

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Hit:
    """A paper found: ``score`` orders the hits of one question only; ``why`` says what matched."""

    entry: Entry
    score: float
    why: str


def search(question: str, limit: int = 10, among: Collection[str] | None = None) -> list[Hit]:
    """Papers that fit the question, best first; an empty list when nothing does.

    Any text is safe: characters of the index's query syntax are plain text here.

    Args:
        among: keys of the only papers that may be found; None for all.

    Raises:
        ValueError: the question is empty, or ``limit`` is not an integer of at least 1.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question must be a text with at least one word, got {question!r}")
    check_count("limit", limit)
    name, asked = name_asked(question), tokens(question)[:_LONGEST]
    question = " ".join(asked)
    entries = load()
    indexes = _indexes()
    allowed = [among is None or entry.key in among for entry in entries]
    depth = max(_DEPTH, limit)
    similarity = indexes.by_meaning.similarity(question)
    rankings = [
        [row for row in indexes.by_word.rank(question, len(entries)) if allowed[row]][:depth],
        _near(similarity, _LEAST_SIMILAR, allowed, depth),
    ]
    if (vector := vector_of_question(question)) is not None:
        rankings.append(_near(_sentences() @ vector, _LEAST_LIKE, allowed, depth))
    scores = fuse(rankings)
    for row in indexes.names.get(name, ()):
        if allowed[row]:
            scores[row] = scores.get(row, 0) + 1  # asked for by name: nothing may stand before it
    order = {row: (-round(worth, 9), entries[row].tier, -similarity[row]) for row, worth in scores.items()}
    best = sorted(scores, key=order.__getitem__)[:limit]
    return [
        Hit(entries[row], scores[row], _why(entries[row], question, float(similarity[row]))) for row in best
    ]


def similar(key: str, limit: int = 5) -> list[tuple[Entry, float]]:
    """The papers of the catalog nearest in meaning to one of them, with the cosine of MiniLM's vectors.

    Raises:
        ValueError: no paper has this key, or ``limit`` is not an integer of at least 1.
    """
    check_count("limit", limit)
    entries = load()
    own = next((row for row, entry in enumerate(entries) if entry.key == key), None)
    if own is None:
        raise ValueError(f"key must be that of a paper in the catalog, got {key!r}")
    vectors = _sentences()
    likeness = vectors @ vectors[own]
    likeness[own] = 0
    best = (-likeness).argsort(kind="stable")[:limit]
    return [(entries[row], float(likeness[row])) for row in best if likeness[row] >= _LEAST_ALIKE]


def near(text: str, limit: int = 5) -> list[tuple[Entry, float]]:
    """The papers of the catalog nearest to a text, with the cosine of latent semantic analysis."""
    check_count("limit", limit)
    entries = load()
    similarity = _indexes().by_meaning.similarity(text)
    best = (-similarity).argsort(kind="stable")[:limit]
    return [(entries[row], float(similarity[row])) for row in best if similarity[row] >= _LEAST_SIMILAR]


def vectors_of(keys: Sequence[str]) -> np.ndarray:
    """MiniLM's unit vectors of papers of the catalog, float32 (keys, 384); zeros for one that has none."""
    rows = {entry.key: row for row, entry in enumerate(load())}
    return _sentences()[[rows[key] for key in keys]]


def vector_of_question(question: str) -> np.ndarray | None:
    """MiniLM's unit vector of a question, float32 [384]; None where its wheel is missing, or any word."""
    asked = tokens(question)[:_LONGEST]
    encode = _encoder() if asked else None
    return encode(" ".join(asked)) if encode else None


def named(question: str) -> list[Entry]:
    """The papers whose arXiv id, repository (or an address of either), key or exact title the question is."""
    return [load()[row] for row in _indexes().names.get(name_asked(question), ())]


def meant_by() -> str:
    """What judges meaning here, as a reader may be told."""
    return f"{_SENTENCES} and {_LATENT}" if has_encoder() else _LATENT


def has_encoder() -> bool:
    """Whether MiniLM is here."""
    return _encoder() is not None


def fuse(rankings: Iterable[Sequence[Name]]) -> dict[Name, float]:
    """The mean worth of everything that is ranked; first in all rankings is worth 1 / 21."""
    rankings = list(rankings)
    scores: dict[Name, float] = {}
    for ranking in rankings:
        for place, name in enumerate(ranking):
            scores[name] = scores.get(name, 0.0) + 1 / (_DAMPING + place + 1) / len(rankings)
    return scores


class _Indexes(NamedTuple):
    by_word: WordIndex
    by_meaning: MeaningIndex
    names: Mapping[str, Sequence[int]]


@lru_cache(maxsize=1)
def _indexes() -> _Indexes:
    from thalweg.papers.meaning import (
        MeaningIndex,  # numpy is loaded by the first question, not by the import
    )

    entries = load()
    names: dict[str, list[int]] = {}
    for row, entry in enumerate(entries):
        own = title_name(entry.title), title_name(entry.key), entry.arxiv, repository_named(entry.repository)
        for name in {*own} - {""}:
            names.setdefault(name, []).append(row)
    return _Indexes(WordIndex(entries), MeaningIndex(entries), names)


@lru_cache(maxsize=1)
def _sentences() -> np.ndarray:
    from thalweg.papers.sentence_vectors import read

    return read(load())


def _encoder() -> Callable[[str], np.ndarray] | None:
    from thalweg.papers.sentence_vectors import question_encoder

    return question_encoder()


def _near(similarity: np.ndarray, least: float, allowed: Sequence[bool], depth: int) -> list[int]:
    # Beside a close match a distant one is noise.
    least = max(least, 0.5 * float(similarity.max()))
    ranked = (int(row) for row in (-similarity).argsort(kind="stable"))
    return [row for row in ranked if allowed[row] and similarity[row] >= least][:depth]


def _why(entry: Entry, question: str, similarity: float) -> str:
    reasons = []
    asked = content_words(question)[:_MOST_TOLD]
    for place, text in (
        ("topics", " ".join(entry.topics)),
        ("title", f"{entry.key} {entry.title}"),
        ("text", f"{entry.summary} {entry.claim}"),
    ):
        held = " ".join(["", *tokens(text)])
        found = [word for word in asked if f" {word}" in held]  # the word, or one that begins with it
        asked = [word for word in asked if word not in found]
        if found:
            reasons.append(f"{place}: {', '.join(found)}")
    if similarity >= _LEAST_SIMILAR:
        reasons.append(f"meaning {similarity:.2f}")
    return "; ".join(reasons) or "word stem"
