"""Which papers fit a question, each judged by its own text: no paper fits because there is nothing better.

Search ranks everything that there is; a mail must not bring the best of a bad lot: here a threshold decides.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from thalweg.desk.paper import Paper
from thalweg.desk.tagging import tagger
from thalweg.papers.meaning import terms

__all__ = ["Fitting"]

# Of the papers that tests/papers/questions.tsv names it lets through 61%, and of 310 papers 11 at the median;
# of texts from other fields one in 300.
NEAR = 0.22


class Fitting:
    """Reads the papers once, for any number of questions."""

    def __init__(self, papers: Sequence[Paper]) -> None:
        texts = [f"{one.title} {' '.join(one.topics)} {one.summary} {one.claim}" for one in papers]
        self._words = [set(terms(text)) for text in texts]
        self._vectors = _vectors(texts)

    def __call__(self, question: str) -> list[bool]:
        """For each paper, whether it has every word of the question (by stem) or is near to it in meaning."""
        words = set(terms(question))
        return [
            bool(near or (words and words <= held))
            for near, held in zip(self.similarity(question) >= NEAR, self._words, strict=True)
        ]

    def similarity(self, question: str) -> np.ndarray:
        """Cosine in the catalog's latent semantic space, times the share of the text it has words for."""
        (vector,) = _vectors([question])
        return self._vectors @ (vector / max(float(np.linalg.norm(vector)), 1e-12))


def _vectors(texts: Sequence[str]) -> np.ndarray:
    """Texts in the catalog's latent semantic space, (texts, rank)."""
    guess = tagger()
    if not texts:
        return np.zeros((0, guess.index.directions.shape[1]))
    return guess.table(texts)[:, :-1] @ guess.index.directions
