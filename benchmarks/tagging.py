"""How often automatic tags are right, on papers of the catalog left out one at a time, and how fast it goes.

Each paper is read as if it were imported, by title, summary and claim, by a tagger that never saw it. A topic
or a finding that no other paper has cannot be found and is not counted as missed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from thalweg.desk.tagging import NOTHING, Tagger, Tags
from thalweg.papers.entry import Entry, load


def text_of(entry: Entry) -> str:
    """What an import would know of it."""
    return f"{entry.title} {entry.summary} {entry.claim}"


def held_out(entries: Sequence[Entry], folds: int) -> dict[str, Tags]:
    """Tags of every paper by a tagger that never saw it; as many folds as papers leave out one at a time."""
    order = np.random.default_rng(0).permutation(len(entries))
    found: dict[str, Tags] = {}
    for fold in range(folds):
        out = set(order[fold::folds].tolist())
        guess = Tagger([one for row, one in enumerate(entries) if row not in out])
        held = [entries[row] for row in sorted(out)]
        found |= dict(zip((one.key for one in held), guess([text_of(one) for one in held]), strict=True))
    return found


def rates(entries: Sequence[Entry], found: dict[str, Tags]) -> dict[str, float]:
    """Shares: tagged at all; per kind given, right among the given, found among the findable."""
    count = len(entries)
    rooms = [(found[one.key].room, one.room) for one in entries]
    given = sum(bool(guess) for guess, _ in rooms)
    topics = _counted((found[one.key].topics, one.topics) for one in entries)
    findings = _counted((found[one.key].addresses, one.addresses) for one in entries)
    return {
        "tagged": sum(found[one.key] != NOTHING for one in entries) / count,
        "room given": given / count,
        "room right": sum(guess == room for guess, room in rooms) / given,
        "topics a paper": topics[0] / count,
        "topic right": topics[1],
        "topic found": topics[2],
        "findings given": findings[0],
        "finding right": findings[1],
        "finding found": findings[2],
    }


def _counted(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> tuple[int, float, float]:
    both = list(pairs)
    holders = Counter(name for _, own in both for name in own)
    given = sum(len(guess) for guess, _ in both)
    right = sum(len(set(guess) & set(own)) for guess, own in both)
    findable = sum(holders[name] > 1 for _, own in both for name in own)
    return given, right / given, right / findable


def main() -> None:
    entries = load()
    for name, value in rates(entries, held_out(entries, len(entries))).items():
        print(f"{name:16} {value:.3g}")
    guess = Tagger(entries)
    texts = [f"{text_of(one)} " * 3 for one in entries] * 10
    guess(texts[:500])
    start = time.process_time()
    for place in range(0, len(texts), 1000):
        guess(texts[place : place + 1000])
    seconds = time.process_time() - start
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts) / seconds:.0f} texts of {words:.0f} words a second of one core")
