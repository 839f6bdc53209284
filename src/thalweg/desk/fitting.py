"""Which papers fit a question, each judged by its own text: no paper fits because there is nothing better.

Search ranks everything that there is; a mail must not bring the best of a bad lot: here a threshold decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thalweg.desk.paper import Paper
from thalweg.desk.tagging import tagger
from thalweg.papers.meaning import terms

__all__ = ["fits"]

# Of the papers that tests/papers/questions.tsv names it lets through 61%, and of 310 papers 11 at the median;
# of texts from other fields one in 300.
NEAR = 0.22


def fits(question: str, papers: Sequence[Paper]) -> list[bool]:
    """For each paper, whether it has every word of the question (by stem), or is near to it in meaning."""
    if not papers:
        return []
    texts = [f"{one.title} {' '.join(one.topics)} {one.summary} {one.claim}" for one in papers]
    words = set(terms(question))
    near = similarity(question, texts) >= NEAR
    return [
        bool(close) or bool(words and words <= set(terms(text)))
        for close, text in zip(near, texts, strict=True)
    ]


def similarity(question: str, texts: Sequence[str]) -> np.ndarray:
    """Cosine in the catalog's latent semantic space, times the share of the text that it has words for."""
    guess = tagger()
    vectors = guess.table([question, *texts])[:, :-1] @ guess.index.directions
    return vectors[1:] @ (vectors[0] / max(float(np.linalg.norm(vectors[0])), 1e-12))
