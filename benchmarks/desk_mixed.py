"""Search over two collections: how well papers of the catalog are found when some of them are imported ones.

``python -m benchmarks desk_mixed``. Every tenth, then every second paper is taken out of the catalog and
imported with its summary and claim as an abstract, without its topics; at last all but every tenth. Each
paper is asked for by its title, its similar papers are looked at, and the practitioners' questions of the
tests are asked: when no imported paper has a vector of MiniLM, when every second one has, and when all have.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import thalweg.papers.entry as catalog
from thalweg.desk import common_scale, tagging
from thalweg.desk.database import Database
from thalweg.desk.encoding import encode_missing
from thalweg.desk.imported import checked
from thalweg.desk.imported_search import rebuild
from thalweg.desk.library import Library
from thalweg.desk.paper import Paper
from thalweg.desk.shelf import Shelf
from thalweg.papers.entry import Entry, load
from thalweg.papers.minilm import model_folder

search = importlib.import_module("thalweg.papers.search")
QUESTIONS = Path(__file__).parents[1] / "tests" / "papers" / "questions.tsv"
NEAREST = 5


def main() -> None:
    everything = load()
    with tempfile.TemporaryDirectory() as name:
        places = [(place, entry) for place, entry in enumerate(everything, 1)]
        for taken in (
            [],
            [entry for place, entry in places if place % 10 == 0],
            [entry for place, entry in places if place % 2 == 0],
            [entry for place, entry in places if place % 10],
        ):
            print(f"{len(taken)} of {len(everything)} papers imported", flush=True)
            shelves(Path(name) / str(len(taken)), everything, taken)


def shelves(folder: Path, everything: Sequence[Entry], taken: Sequence[Entry]) -> None:
    """The library, its index with more and more of MiniLM's vectors, and what is found."""
    kept = folder / "entries"
    kept.mkdir(parents=True)
    names = {entry.key for entry in taken}
    for entry in everything:
        if entry.key not in names:
            (kept / f"{entry.key}.toml").symlink_to(
                Path(catalog.__file__).parent / "entries" / f"{entry.key}.toml"
            )
    catalog.ENTRIES = kept
    for cached in (search._indexes, search._sentences, tagging.tagger, common_scale._catalog_holders):
        cached.cache_clear()
    library = Library(Database(folder / "desk"))
    rows = [
        {
            "id": entry.arxiv or f"key:{entry.key}",
            "title": entry.title,
            "published": entry.date,
            "abstract": f"{entry.summary} {entry.claim}",
        }
        for entry in taken
    ]
    model = model_folder() if taken else None
    library.add([checked(row) for row in rows[::2]])
    if model:
        encode_missing(library, model)
    library.add([checked(row) for row in rows[1::2]])
    for encoded in ("none", "every second one", "all") if model else ("none",):
        if encoded == "all" and model:
            encode_missing(library, model)
        rebuild(library, sentences=encoded != "none")
        print(f" imported papers with a vector of MiniLM: {encoded}")
        tell(Shelf(library), everything, taken)


def tell(shelf: Shelf, everything: Sequence[Entry], taken: Sequence[Entry]) -> None:
    names = {entry.key for entry in taken}
    keys = {entry.title: entry.key for entry in everything}
    topics = {entry.key: {*entry.topics} for entry in everything}

    def found(question: str, count: int = 60) -> list[str]:
        return [keys[one.title] for one, _ in shelf.search(question, count)]

    first = mean(found(entry.title, 1)[:1] == [entry.key] for entry in everything)
    print(f"  first for its own title: {first:.1%} of all papers")
    rest = [entry for entry in everything if entry.key not in names]
    for kind, some in (("imported papers", taken), ("papers of the catalog", rest)):
        near = [
            (entry.key, keys[one.title])
            for entry in some
            for one in shelf.similar(own(shelf, entry), NEAREST)
        ]
        if near:
            alike = mean(bool(topics[one] & topics[other]) for one, other in near)
            imported = mean(other in names for _, other in near)
            print(
                f"  similar to {kind}: {alike:.0%} of {len(near)} share a topic, {imported:.0%} are imported"
            )
    asked = [line.split("\t") for line in QUESTIONS.read_text(encoding="utf8").splitlines()]
    hits, ranks = [], []
    for _, question, answers in asked:
        places = [place for place, key in enumerate(found(question), 1) if key in answers.split()]
        hits.append(bool(places) and places[0] <= 5)
        ranks.append(1 / places[0] if places else 0.0)
    said = f"{mean(hits):.0%} have an answer among the first five, mean reciprocal rank {mean(ranks):.2f}"
    print(f"  questions: {said}", flush=True)


def own(shelf: Shelf, entry: Entry) -> Paper:
    """The paper where it is now."""
    return next(one for one, _ in shelf.search(entry.title, 3) if one.title == entry.title)


if __name__ == "__main__":
    main()
