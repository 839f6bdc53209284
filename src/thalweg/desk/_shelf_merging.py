"""A paper both in the catalog and imported is one: the catalog's, with authors and day from the import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain

from thalweg.desk._library_labels import labels_of
from thalweg.desk.library import Library, by_ids, by_titles
from thalweg.desk.paper import Paper
from thalweg.desk.reading_order import ReadingOrder
from thalweg.desk.same_paper import may_be_same, plain_title
from thalweg.desk.tagging import Tags


@dataclass(frozen=True)
class Merged:
    """What is in memory, as of one change of the library.

    ``by_id`` has papers of the catalog by key and by each id that they have here or were imported under;
    ``known`` the numbers of these imports, with their days; ``twice`` how many of them the library counts
    under a label (kind and name), from before the catalog had them.
    """

    change: int
    papers: tuple[Paper, ...]
    by_id: dict[str, Paper]
    known: dict[int, str]
    twice: Counter[tuple[str, str]]
    order: ReadingOrder

    def label_counts(self, library: Library, kind: str) -> dict[str, int]:
        """Names of a kind with the number of imported papers that the catalog does not have."""
        counts = {name: count - self.twice[kind, name] for name, count in library.label_counts(kind).items()}
        return {name: count for name, count in counts.items() if count > 0}


def merge(built_in: Iterable[Paper], library: Library | None, change: int) -> Merged:
    """The catalog with what the library says of its papers."""
    papers, known, labels = {one.key: one for one in built_in}, {}, {}
    others: dict[str, str] = {}
    for row, other, key in _imports(papers, library) if library else ():
        mine, known[row], others[other.id] = papers[key], other.date, key
        labels[row] = labels_of(Tags(other.topics, other.room, other.addresses))
        papers[key] = replace(
            mine,
            authors=mine.authors or other.authors,
            organisation=mine.organisation or other.organisation,
            date=max(mine.date, other.date) if other.date.startswith(mine.date) else mine.date,
            repository=mine.repository or other.repository,
            link=mine.link or other.link,
            added=other.added,
        )
    listed = tuple(sorted(papers.values(), key=lambda one: (one.date, one.arxiv), reverse=True))
    names = {name: papers[key] for name, key in others.items()}
    names |= {name: one for one in listed for name in (one.key, one.arxiv) if name}
    twice = Counter(chain.from_iterable(labels.values()))
    return Merged(change, listed, names, known, twice, ReadingOrder(listed, library, known))


def _imports(papers: dict[str, Paper], library: Library) -> Iterable[tuple[int, Paper, str]]:
    """Imported papers that the catalog has, with its key: by title, and then, surer, by arXiv id."""
    titles = {plain: one for one in papers.values() if (plain := plain_title(one.title))}
    for row, other in by_titles(library, titles):
        mine = titles.get(plain_title(other.title))
        if mine is not None and may_be_same(mine.id, other.id):
            yield row, other, mine.key
    ids = {one.arxiv: one.key for one in papers.values() if one.arxiv}
    yield from ((row, other, ids[other.id]) for row, other in by_ids(library, ids))
