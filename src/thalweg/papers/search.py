"""A question in, papers out: ranks by word and by meaning, fused by reciprocal rank.

The fusion is that of Cormack, Clarke and Buettcher (2009).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from thalweg._core.checks import check_count
from thalweg.papers.entry import Entry, load
from thalweg.papers.words import WordIndex, content_words, tokens

if TYPE_CHECKING:
    from thalweg.papers.meaning import MeaningIndex

_DAMPING = 20  # how slowly the worth of a rank falls; 60 is usual for web-sized lists
_DEPTH = 60
_LEAST_SIMILAR = 0.15


@dataclass(frozen=True)
class Hit:
    """A paper found: ``score`` orders the hits of one question only; ``why`` says what matched."""

    entry: Entry
    score: float
    why: str


def search(question: str, limit: int = 10) -> list[Hit]:
    """Papers that fit the question, best first; an empty list when nothing does.

    Any text is safe: characters of the index's query syntax are plain text here.

    Raises:
        ValueError: the question is empty, or ``limit`` is not an integer of at least 1.
    """
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question must be a text with at least one word, got {question!r}")
    check_count("limit", limit)
    entries = load()
    by_word, by_meaning, names = _indexes(entries)
    similarity = by_meaning.similarity(question)
    # Beside a close match a distant one is noise.
    least = max(_LEAST_SIMILAR, 0.5 * float(similarity.max()))
    near = [int(row) for row in (-similarity).argsort(kind="stable")[:_DEPTH] if similarity[row] >= least]

    scores: dict[int, float] = defaultdict(float)
    for ranking in (by_word.rank(question, _DEPTH), near):
        for place, row in enumerate(ranking):
            scores[row] += 1 / (_DAMPING + place + 1)
    named = names.get(tuple(tokens(question)))
    if named is not None:
        scores[named] += 1  # asked for by name: nothing may stand before it
    best = sorted(scores, key=lambda row: (-scores[row], entries[row].tier, row))[:limit]
    return [
        Hit(entries[row], scores[row], _why(entries[row], question, float(similarity[row]))) for row in best
    ]


@lru_cache(maxsize=1)
def _indexes(entries: tuple[Entry, ...]) -> tuple[WordIndex, MeaningIndex, dict[tuple[str, ...], int]]:
    from thalweg.papers.meaning import (
        MeaningIndex,  # numpy is loaded by the first question, not by the import
    )

    names = {
        tuple(tokens(name)): row for row, entry in enumerate(entries) for name in (entry.title, entry.key)
    }
    return WordIndex(entries), MeaningIndex(entries), names


def _why(entry: Entry, question: str, similarity: float) -> str:
    reasons = []
    asked = content_words(question)
    for place, text in (
        ("topics", " ".join(entry.topics)),
        ("title", f"{entry.key} {entry.title}"),
        ("text", f"{entry.summary} {entry.claim}"),
    ):
        held = tokens(text)
        found = [word for word in asked if any(other.startswith(word) for other in held)]
        asked = [word for word in asked if word not in found]
        if found:
            reasons.append(f"{place}: {', '.join(found)}")
    if similarity >= _LEAST_SIMILAR:
        reasons.append(f"meaning {similarity:.2f}")
    return "; ".join(reasons) or "word stem"
