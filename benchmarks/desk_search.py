"""Search on the desk: the built-in catalog, and a million imported papers.

``python -m benchmarks desk_search [--papers N] [--folder PATH] [--questions N]``. The papers are made up
(:mod:`benchmarks._abstracts`): their words are spread as those of English are, their topics have structure.
They go into a library as an import would put them, with topics that are given and not guessed. Encoding a
million takes hours, so vectors are made up too: MiniLM's of one paper of a topic, and noise, for all papers
but one in fifty. The index is built by its command, which encodes others for a minute; its memory is told.
Then pages are asked for, each with a question that is new. Times are told by the clock on the wall and by
that of the processors. A folder that is given is kept, and what is in it is not made again.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI
from threadpoolctl import threadpool_limits

from benchmarks._abstracts import Generator
from benchmarks._bars import judged
from thalweg.desk.app import create_app
from thalweg.desk.database import Database
from thalweg.desk.imported import Imported
from thalweg.desk.imported_search import index_folder
from thalweg.desk.index.filters import Filters
from thalweg.desk.index.passages import encoder_for, passage
from thalweg.desk.index.search_index import SearchIndex, stamp
from thalweg.desk.index.vector_cache import VectorCache, text_number
from thalweg.desk.library import Library
from thalweg.desk.tagging import Tags
from thalweg.papers.entry import ROOMS
from thalweg.papers.minilm import model_folder
from thalweg.papers.search import meant_by, search, vector_of_question
from thalweg.papers.words import STOP_WORDS

QUESTIONS = Path(__file__).parents[1] / "tests" / "papers" / "questions.tsv"
CATALOG_BAR, IMPORTED_BAR = 0.020, 0.100
BATCH = 5000
NOISE = 0.05  # in each of 384 numbers: as long as the vector of the topic
FREQUENT = 200  # words of the common list that come first
# The command, and then the most memory that its process had; what rusage says of a child holds its parent's.
BUILD = """
import pathlib, sys
from thalweg.desk.index_cli import index
index(data=pathlib.Path(sys.argv[1]))
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def catalog() -> None:
    """Seventy-odd questions, each asked once of a desk without imported papers."""
    reader = Reader(create_app())
    asked = [line.split("\t")[1] for line in QUESTIONS.read_text(encoding="utf8").splitlines()]
    start = time.perf_counter()
    search("which question is the first one")
    for room in ROOMS:
        page(reader, "which page is the first one", Filters(room=room))  # its evidence is read once
    print(f"meaning by {meant_by()}; the first questions take {time.perf_counter() - start:.2f} s")
    tell("search alone", [timed(search, question) for question in asked], CATALOG_BAR)
    pages = [timed(page, reader, f"{question} in training") for question in asked]
    tell("a page", pages, CATALOG_BAR)


def imported(folder: Path, count: int, questions: int) -> None:
    """A library of so many papers, its index, and pages over both."""
    generator = Generator()
    library = Library(Database(folder))
    if not library.count():
        fill(library, generator, count)
    if stamp(index_folder(library)):
        print("the index was built before")
    else:
        encode(library)
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", BUILD, str(folder)], check=True, capture_output=True, text=True
        )
        seconds, memory = time.perf_counter() - start, int(done.stdout.split()[-2])
        print(done.stdout.rsplit("\n", 2)[0])
        print(f"encoding and building take {seconds:.0f} s, with {memory / 1e3:,.0f} MB of memory at most")
    size = sum(one.stat().st_size for one in index_folder(library).rglob("*") if one.is_file())
    stored = sum(one.stat().st_size for one in folder.glob("desk.sqlite*"))
    print(
        f"{library.count():,} papers: index {size / 1e6:,.0f} MB, database {stored / 1e6:,.0f} MB", flush=True
    )
    source = np.random.default_rng(7)
    index = SearchIndex(index_folder(library))
    print(f"{index.covered:,} papers have a vector of MiniLM")
    index.rankings("warm", vector=vector_of_question("warm"))
    topics = sorted(library.label_counts("topic"))
    kinds = mixed(generator, source, questions, topics)
    print("the index alone")
    for name, asked in kinds.items():
        tell(f"  {name}", [timed(rankings, index, question, filters) for question, filters in asked])
    reader = Reader(create_app(folder=folder))
    page(reader, "warm")
    print("pages, catalog and imported papers together")
    taken: list[Taken] = []
    for name, asked in kinds.items():
        times = [timed(page, reader, question, filters) for question, filters in asked]
        taken += times
        tell(f"  {name}", times)
    some = library.by_rowid(source.integers(1, library.count(), questions).tolist())
    times = [timed(reader.get, f"/papers/{one.key}") for one in some]
    tell("  a paper with similar ones", times)
    tell("  all", taken + times, IMPORTED_BAR)


def fill(library: Library, generator: Generator, count: int) -> None:
    """Put the papers in; topics are those that they were made with."""
    papers, start = generator.papers(count), time.perf_counter()
    while some := list(itertools.islice(papers, BATCH)):
        library.tags = lambda _, some=some: [
            Tags((f"field {one.topic // 12}", f"topic {one.topic}"), ROOMS[one.topic % len(ROOMS)])
            for one in some
        ]
        library.add(
            Imported(f"made:{one.row}", one.title, one.abstract, published=one.date, updated=one.date)
            for one in some
        )
    print(f"{count:,} papers imported in {time.perf_counter() - start:.0f} s", flush=True)


def encode(library: Library) -> None:
    """Vectors for all papers but every fiftieth, near to each other within a topic."""
    folder = model_folder()
    if folder is None:
        return
    first: dict[str, str] = {}
    for one in itertools.islice(library.stream(), 20_000):
        first.setdefault(one.topics[-1], passage(one.title, one.abstract))
    with encoder_for(len(first), folder) as encoder:
        vectors = dict(zip(first, encoder(list(first.values())), strict=True))
    source, papers = np.random.default_rng(11), library.stream()
    cache = VectorCache(index_folder(library))
    with cache.alone():
        while some := [one for one in itertools.islice(papers, BATCH) if one.row % 50]:
            numbers = [text_number(passage(one.title, one.abstract)) for one in some]
            made = np.array([vectors[one.topics[-1]] for one in some])
            made += NOISE * source.standard_normal(made.shape, np.float32)
            cache.add(np.array(numbers, np.uint64), made / np.linalg.norm(made, axis=1, keepdims=True))


def rankings(index: SearchIndex, question: str, filters: Filters) -> None:
    index.rankings(question, filters, vector=vector_of_question(question))


def mixed(
    generator: Generator, source: np.random.Generator, count: int, topics: list[str]
) -> dict[str, list[tuple[str, Filters]]]:
    """Kinds of questions, all different."""
    stops = len(STOP_WORDS)
    common, rare = generator.words[stops : stops + FREQUENT], generator.words[stops + 5000 :]

    def about(least: int, most: int) -> Iterator[str]:
        while True:
            yield generator.question(source, int(source.integers(240)), int(source.integers(least, most)))

    def of(words: np.ndarray) -> Iterator[str]:
        while True:
            yield " ".join(source.choice(words, int(source.integers(1, 5))))

    def filters() -> Iterator[Filters]:
        while True:
            topic = str(source.choice(topics))
            yield from (
                Filters(topic=topic),
                Filters(room=ROOMS[int(source.integers(len(ROOMS)))]),
                Filters(since=f"{source.integers(2000, 2025)}-06-15"),
                Filters(topic=topic, until=f"{source.integers(2005, 2025)}"),
            )

    none = itertools.repeat(Filters())
    kinds = {
        "three to eight words": (about(3, 9), none),
        "rare words": (of(rare), none),
        "the commonest words": (of(common), none),
        "forty to sixty words": (about(40, 60), none),
        "with filters": (about(3, 9), filters()),
    }
    return {
        name: list(itertools.islice(zip(asked, chosen, strict=False), count))
        for name, (asked, chosen) in kinds.items()
    }


class Reader:
    """Asks the application itself, as a server does for a browser, without a network."""

    def __init__(self, app: FastAPI) -> None:
        self._app, self._loop = app, asyncio.new_event_loop()

    def get(self, path: str, query: str = "") -> bytes:
        answer: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            answer.append(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(b"host", b"127.0.0.1:8600"), (b"accept-encoding", b"gzip")],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8600),
        }
        self._loop.run_until_complete(self._app(scope, receive, send))
        assert answer[0]["status"] == 200, answer
        return b"".join(message.get("body", b"") for message in answer[1:])


def page(reader: Reader, question: str, filters: Filters | None = None) -> None:
    reader.get("/search", urlencode({"q": question[:400], **vars(filters or Filters())}))


class Taken(NamedTuple):
    """Seconds on the wall, and of processors, all threads together."""

    wall: float
    processor: float


def timed(act: Callable[..., object], *given: object) -> Taken:
    wall, processor = time.perf_counter(), time.process_time()
    act(*given)
    return Taken(time.perf_counter() - wall, time.process_time() - processor)


def tell(what: str, times: list[Taken], bar: float | None = None) -> None:
    """Both clocks; the bar is for the one on the wall."""
    told = []
    for clock in Taken._fields:
        some = [getattr(one, clock) for one in times]
        cut = quantiles(some, n=100)
        mark = ""
        if bar is not None and clock == "wall":
            mark = f" ({judged(what.strip(), cut[94], bar)} at 95%)"
        told.append(f"{clock} median {median(some) * 1e3:.1f} ms, 95% {cut[94] * 1e3:.1f} ms{mark}")
    print(f"{what}: {'; '.join(told)}; of {len(times)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--papers", type=int, default=1_000_000)
    parser.add_argument("--questions", type=int, default=100, help="of each kind")
    parser.add_argument("--folder", type=Path, default=None, help="where the library is made, or was before")
    chosen = parser.parse_known_args()[0]
    # As the commands have it; here numpy is there already, and the environment comes too late.
    with threadpool_limits(1, "blas"), tempfile.TemporaryDirectory() as folder:
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"{os.cpu_count()} processors, one BLAS thread; load average {load}")
        catalog()
        imported(chosen.folder or Path(folder), chosen.papers, chosen.questions)


if __name__ == "__main__":
    main()
