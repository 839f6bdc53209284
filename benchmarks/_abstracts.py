"""A million made-up papers whose words are spread as those of English are, and whose topics have structure.

Two of five words are stop words. Of the others, half come from one list shared by all, half from the lists
of a topic, of the field that the topic is in, and now and then of a second topic; within a list the k-th
word is as frequent as 1/(k + 10), Zipf's law as Mandelbrot amended it, so that the commonest is in four
abstracts of ten. Nothing is read from anywhere: the same seed gives the same papers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from thalweg.papers.words import STOP_WORDS

FIELDS, TOPICS = 20, 12  # topics in each field
COMMON, OF_FIELD, OF_TOPIC = 30_000, 600, 250  # words in a list
AT_ONCE = 10_000
SHIFT = 10
_STARTS = (*"bcdfghjklmnprstvwz", "br", "ch", "dr", "gr", "pl", "pr", "qu", "sh", "st", "tr")
_SYLLABLES = np.array([start + vowel for start in _STARTS for vowel in (*"aeiou", "ai", "ea", "io", "ou")])


@dataclass(frozen=True)
class Made:
    """A made-up paper; ``topic`` is its number, ``date`` an ISO day."""

    row: int
    title: str
    abstract: str
    topic: int
    date: str


@dataclass(frozen=True)
class Generator:
    """Papers of ``seed``, about ``length`` words each."""

    seed: int = 0
    length: int = 150
    words: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        made = _words(np.random.default_rng(self.seed), COMMON + FIELDS * (OF_FIELD + TOPICS * OF_TOPIC))
        object.__setattr__(self, "words", np.array(sorted(STOP_WORDS) + made, dtype=object))

    def papers(self, count: int) -> Iterator[Made]:
        """Rows 1 to ``count``, their days spread evenly over 25 years up to 2024."""
        source = np.random.default_rng(self.seed + 1)
        first = np.datetime64("2000-01-01")
        for start in range(0, count, AT_ONCE):
            size = min(AT_ONCE, count - start)
            topics = source.integers(0, FIELDS * TOPICS, size)
            lengths = source.poisson(self.length, size).clip(40)
            drawn = self.words[self._draw(source, np.repeat(topics, lengths))]
            ends = np.cumsum(lengths)
            days = first + source.integers(0, 25 * 365, size)
            for i, (end, length) in enumerate(zip(ends, lengths, strict=True)):
                text = drawn[end - length : end]
                yield Made(
                    start + i + 1, " ".join(text[:10]), " ".join(text[10:]), int(topics[i]), str(days[i])
                )

    def question(self, source: np.random.Generator, topic: int, length: int) -> str:
        """Words as a paper of this topic holds them."""
        return " ".join(self.words[self._draw(source, np.full(length, topic))])

    def _draw(self, source: np.random.Generator, topics: np.ndarray) -> np.ndarray:
        """A word for each given topic, as positions in ``words``."""
        count = len(topics)
        which = source.random(count)
        stops = len(STOP_WORDS)
        of_field = stops + COMMON
        of_topic = of_field + FIELDS * OF_FIELD
        second = source.integers(0, FIELDS * TOPICS, count)
        topics = np.where(which > 0.97, second, topics)
        return np.select(
            [which < 0.4, which < 0.7, which < 0.82],
            [
                _zipf(source, stops, count),
                stops + _zipf(source, COMMON, count),
                of_field + topics // TOPICS * OF_FIELD + _zipf(source, OF_FIELD, count),
            ],
            of_topic + topics * OF_TOPIC + _zipf(source, OF_TOPIC, count),
        )


def _zipf(source: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Places 0 to size - 1, by the law of Zipf and Mandelbrot."""
    shares = np.cumsum(1 / np.arange(1 + SHIFT, size + 1 + SHIFT))
    return np.searchsorted(shares, source.random(count) * shares[-1]).clip(max=size - 1)


def _words(source: np.random.Generator, count: int) -> list[str]:
    """So many different words of two to four syllables."""
    drawn = _SYLLABLES[source.integers(0, len(_SYLLABLES), (2 * count, 4))]
    lengths = source.integers(2, 5, 2 * count)
    found = dict.fromkeys(
        "".join(row[:length]) for row, length in zip(drawn.tolist(), lengths.tolist(), strict=True)
    )
    return list(found)[:count]
