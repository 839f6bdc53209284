"""Importing a large file of made-up papers, and how long pages take then.

``python -m benchmarks importing [--papers N] [--folder PATH]``; a million papers need 4 GB of disk. Each
tenth paper borrows the text of one of the catalog, so that there is something to tag and to list by topic.
The imports run in a process of their own, as of ``thalweg papers import``, without what benchmarks load.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks._abstracts import Generator
from thalweg.desk._shelf_merging import merge
from thalweg.desk.database import Database
from thalweg.desk.importing import import_file
from thalweg.desk.library import Library
from thalweg.desk.shelf import Shelf
from thalweg.papers.entry import load

TIMES = 30
IMPORT = "import sys; from benchmarks.importing import imports; imports(sys.argv[1])"


def write(path: Path, count: int) -> None:
    """A file of ``count`` papers, a JSON object a line."""
    entries = load()
    with path.open("w") as file:
        for made in Generator().papers(count):
            borrowed = entries[made.row // 10 % len(entries)] if made.row % 10 == 0 else None
            abstract = f"{borrowed.summary} {borrowed.claim}" if borrowed else made.abstract
            row = {
                "id": f"made:{made.row}",
                # With the catalog's very title it would be the catalog's paper.
                "title": f"{borrowed.title}, part {made.row}" if borrowed else made.title,
                "abstract": abstract,
                "authors": ["Ada Arden", "Ben Brook", "Cleo Cole"],
                "published": made.date,
                "categories": ["cs.LG"],
            }
            file.write(json.dumps(row) + "\n")


def twins(library: Library, every: int) -> int:
    """Store one paper of ``every`` a second time under an archive's name; how many that are."""
    fields = (
        "title, abstract, authors, published, updated, categories, organisation, repository, link, source"
    )
    with library.database.write() as on:
        made = on.execute(
            f"INSERT INTO imported (id, {fields}, topics, room, addresses, added, plain) "
            f"SELECT 'pwc:' || paper, {fields}, '[]', '', '[]', added, plain FROM imported "
            "WHERE paper % ? = 0 AND plain != ''",
            (every,),
        ).rowcount
        on.execute("DELETE FROM days")
        on.execute("INSERT INTO days SELECT published, count(*) FROM imported GROUP BY published")
    return made


def pages(shelf: Shelf) -> dict[str, float]:
    """Milliseconds of what each kind of page asks for, the median of some."""
    count = shelf.order.count()
    asked = {
        "newest page": lambda: shelf.order.page(0, 30),
        "page in the middle": lambda: shelf.order.page(count // 2, 30),
        "last page": lambda: shelf.order.page(count - 30, 30),
        "a month": lambda: shelf.order.page(0, 30, "2014-05", "2014-05-31"),
        "a topic": lambda: shelf.chosen(topic="adam", count=30),
        "a topic in a room": lambda: shelf.chosen(topic="adam", room="optim", count=30),
        "a finding, page 100": lambda: shelf.chosen(finding="loss spike", start=3000, count=30),
        "topics": lambda: shelf.topics,
        "a paper": lambda: shelf.paper("made:77"),
        "first after an import": lambda: merge(shelf._built_in, shelf.library, -1).order.page(0, 30),
    }
    found = {}
    for name, ask in asked.items():
        seconds = []
        for _ in range(TIMES):
            start = time.perf_counter()
            ask()
            seconds.append(time.perf_counter() - start)
        found[name] = 1000 * median(seconds)
    return found


def imports(folder: str) -> None:
    """Import the file of a folder twice."""
    library = Library(Database(Path(folder) / "desk"))
    for which in ("first", "second"):
        start, busy = time.perf_counter(), time.process_time()
        report = import_file(library, Path(folder) / "papers.jsonl")
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        print(
            f"{which} import: {report.rows} rows in {seconds:.1f} s ({report.rows / seconds:.0f} rows/s; "
            f"{busy:.1f} s of one core), {report.new} new, {report.known} known"
        )
    # Not what getrusage says, which a process has from the one that started it.
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    print(f"at most {int(peak[1]) / 1024 if peak else float('nan'):.0f} MB of memory")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--papers", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    arguments, _ = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "papers.jsonl").exists():
            write(folder / "papers.jsonl", arguments.papers)
        subprocess.run([sys.executable, "-c", IMPORT, str(folder)], check=True)
        size = sum(file.stat().st_size for file in (folder / "desk").iterdir())
        print(f"database {size / 1e6:.0f} MB")
        library = Library(Database(folder / "desk"))
        for name, milliseconds in pages(Shelf(library)).items():
            print(f"{name:22} {milliseconds:8.2f} ms")
        stored = twins(library, 10)
        for _ in range(2):
            start = time.perf_counter()
            joined = library.join_twins()
            print(f"{joined} of {stored} papers stored twice made one in {time.perf_counter() - start:.1f} s")
