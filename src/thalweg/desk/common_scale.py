"""Papers of the catalog and imported ones on one scale: how well each fits a question, or another paper.

Both collections rank well within themselves and say nothing of each other. Here all texts lie in one latent
semantic space, and a word is as rare as it is in both collections together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

from thalweg.desk.index.counts import numbers
from thalweg.desk.index.sentences import in_one_measure
from thalweg.desk.paper import Paper
from thalweg.desk.tagging import tagger
from thalweg.papers.entry import load
from thalweg.papers.search import fuse

__all__ = ["fit_to", "likeness", "merged"]

Name = str | int
IN_TEXT = 0.6  # what a word of the abstract is worth, in words of the title
# Of a text about something else the catalog knows a few words, which may lie anywhere. From this share on
# a text counts fully.
KNOWN = 0.3

Texts = Sequence[tuple[str, str]]  # titles and what follows them
Project = Callable[[Texts], np.ndarray | None]
Holders = Callable[[np.ndarray], tuple[np.ndarray, int]]


def fit_to(
    question: str,
    papers: Sequence[Paper],
    project: Project,
    holders: Holders,
    sentences: np.ndarray | None = None,
) -> list[float]:
    """What each paper is worth to a question: places by meaning and by word among these, fused.

    Args:
        project: texts in, their unit vectors out; None where the catalog's space has to do.
        holders: stems in; in how many imported papers each is, and how many there are.
        sentences: as for :func:`likeness`.
    """
    meaning = likeness(("", question), papers, project, sentences)
    words = _overlap(question, papers, holders)
    by_meaning = np.lexsort((-words, -meaning))
    by_word = np.lexsort((-meaning, -words))
    worth = fuse([by_meaning.tolist(), by_word.tolist()])
    return [worth[place] for place in range(len(papers))]


def likeness(
    text: tuple[str, str], papers: Sequence[Paper], project: Project, sentences: np.ndarray | None = None
) -> np.ndarray:
    """Cosine of each paper and a text, a title and what follows it.

    Args:
        sentences: cosines of MiniLM, float [papers], NaN for a paper without its vector.
    """
    topics = (
        " ".join(one.topics) if one.entry else "" for one in papers
    )  # others' were guessed from the text
    texts = [
        text,
        *((one.title, f"{more} {one.summary} {one.claim}") for one, more in zip(papers, topics, strict=True)),
    ]
    vectors = project(texts)
    if vectors is None:
        vectors = _in_catalog(texts)
    found = vectors[1:] @ vectors[0]
    if sentences is None or np.isnan(sentences).all():
        return found
    known = ~np.isnan(sentences)
    found[~known] = in_one_measure(found[~known], found[known], sentences[known])
    found[known] = sentences[known]
    return found


def merged(one: Sequence[tuple[Name, float]], other: Sequence[tuple[Name, float]]) -> list[Name]:
    """Two lists in one, each in its own order, by the worths of what they hold.

    The best place goes to the list that holds the worthiest paper, wherever it stands there: a list is better
    at its own order than the common scale is.
    """
    graded = [
        (worth, name)
        for some in (one, other)
        for (name, _), worth in zip(some, sorted((worth for _, worth in some), reverse=True), strict=True)
    ]
    return [name for _, name in sorted(graded, key=lambda pair: -pair[0])]  # of equals the first list's


def _in_catalog(texts: Texts) -> np.ndarray:
    """Vectors in the catalog's latent semantic space, shorter than one where it knows few of the words."""
    guess = tagger()
    found = guess.table([f"{title} {title} {text}" for title, text in texts])[:, :-1] @ guess.index.directions
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.maximum(lengths, KNOWN)


def _overlap(question: str, papers: Sequence[Paper], holders: Holders) -> np.ndarray:
    """Share of the question's words that each paper holds, rare ones counting more, [papers] in [0, 1]."""
    asked = np.unique(np.array(numbers(question), np.uint32))
    theirs, count = holders(asked)
    ours, entries = _catalog_holders(), load()
    held = theirs + np.array([ours.get(stem, 0) for stem in asked.tolist()], np.int64)
    rarity = np.log1p((count + len(entries) + 0.5) / (held + 0.5))
    found = np.zeros((len(papers), len(asked)))
    for row, one in enumerate(papers):
        in_title = {*numbers(f"{one.title} {' '.join(one.topics)}")}
        in_text = {*numbers(f"{one.summary} {one.claim}")}
        found[row] = [1 if s in in_title else IN_TEXT if s in in_text else 0 for s in asked.tolist()]
    return found @ rarity / max(float(rarity.sum()), 1e-12)


@lru_cache(maxsize=1)
def _catalog_holders() -> dict[int, int]:
    held: dict[int, int] = {}
    for one in load():
        for stem in {*numbers(f"{one.title} {' '.join(one.topics)} {one.summary} {one.claim}")}:
            held[stem] = held.get(stem, 0) + 1
    return held
