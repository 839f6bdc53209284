"""Search by meaning: latent semantic analysis of the catalog (Deerwester et al., 1990).

Words that occur in the same papers get near vectors, so a question finds papers that share none of its words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from thalweg.papers.entry import Entry
from thalweg.papers.words import STOP_WORDS, tokens

RANK = 120
_SUFFIXES = re.compile(
    r"(?<=\w{4})(ational|ations?|ments?|ness|ings?|ies|ers?|ed|es|ly|ity|al|ive|or|e|s|y)$"
)


def stem(word: str) -> str:
    """Strip one common ending: ``spikes``, ``spiking`` and ``spike`` all become ``spik``."""
    return _SUFFIXES.sub("", word)


def terms(text: str) -> list[str]:
    """Stems of the words of ``text`` that carry meaning."""
    return [stem(word) for word in tokens(text) if word not in STOP_WORDS]


class MeaningIndex:
    """Papers and questions as unit vectors in the space of the strongest ``rank`` directions of TF-IDF.

    ``columns`` gives each term its place, ``rarity`` its weight; ``directions`` is (terms, rank), ``papers``
    (papers, rank).
    """

    def __init__(self, entries: Iterable[Entry], rank: int = RANK) -> None:
        counts = [Counter(_document(entry)) for entry in entries]
        self.columns = {term: i for i, term in enumerate(sorted(set().union(*counts)))}
        seen_in = Counter(term for count in counts for term in count)
        self.rarity = np.array([np.log((1 + len(counts)) / (1 + seen_in[term])) + 1 for term in self.columns])
        table = np.array([self._weigh(count) for count in counts])
        # The small Gram matrix has the left singular vectors of the wide table, at a fraction of the cost.
        values, left = np.linalg.eigh(table @ table.T)
        keep = [i for i in np.argsort(values)[::-1][:rank] if values[i] > 1e-9 * values[-1]]
        # Papers and questions are projected the same way, so a paper's own text lands on its vector.
        self.directions = table.T @ left[:, keep] / np.sqrt(values[keep])
        self.papers = _unit(table @ self.directions)

    def similarity(self, question: str) -> np.ndarray:
        """Cosine between the question and every paper; zeros when the catalog knows none of its words."""
        return self.papers @ _unit(self._weigh(Counter(terms(question))) @ self.directions)

    def _weigh(self, count: Counter[str]) -> np.ndarray:
        row = np.zeros(len(self.columns))
        for term, times in count.items():
            if term in self.columns:
                row[self.columns[term]] = 1 + np.log(times)
        return _unit(row * self.rarity)


def _document(entry: Entry) -> list[str]:
    return [
        *terms(entry.title) * 2,
        *terms(" ".join(entry.topics)) * 3,
        *terms(entry.summary),
        *terms(entry.claim),
    ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
