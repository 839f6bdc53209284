"""The daily page under many readers: how long they wait, at their own pace and as fast as they can.

``python -m benchmarks desk_load [--readers 200] [--seconds 6]``. ``thalweg desk`` runs in a process of its
own, with 60 imported papers on the day that is read. A reader keeps one connection, asks for the page,
reads it to its end, and asks again: every second, then at once; at last every second while an upvote a
half second makes the desk render anew.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from benchmarks._bars import judged

DAY = "2026-11-27"
BAR = 0.3  # seconds that 95 of 100 pages may take
PAPERS = 60


@contextmanager
def desk(folder: Path) -> Iterator[int]:
    """``thalweg desk`` on a free port, with papers of a day; gives the port."""
    from thalweg.desk.database import Database
    from thalweg.desk.imported import Imported
    from thalweg.desk.library import Library, prepare

    database = Database(folder / "data")
    prepare(database)
    abstract = "We train networks with gradient descent and find that the loss spikes less often. " * 12
    papers = [
        Imported(f"2611.{k:05}", f"A paper of the day, number {k}", abstract, ("A. One", "B. Two"), DAY, DAY)
        for k in range(PAPERS)
    ]
    Library(database).add(papers)
    words = ["desk", "--port", "0", "--data", str(folder / "data"), "--store", str(folder / "runs.sqlite")]
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "thalweg", *words],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stdout is not None
        yield next(int(found[1]) for line in running.stdout if (found := re.search(r":(\d+)/papers", line)))
    finally:
        running.terminate()
        running.wait()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """One page, read to its end; how many bytes it has."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head[:200]
    found = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
    assert found, head
    return len(await reader.readexactly(int(found[1])))


async def read(port: int, request: bytes, pause: float, end: float, times: list[float]) -> int:
    """A reader until ``end``; asks every ``pause`` seconds, at once if that took longer."""
    await asyncio.sleep(random.random() * pause)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    size = 0
    while (start := time.perf_counter()) < end:
        size = await ask(reader, writer, request)
        times.append(time.perf_counter() - start)
        await asyncio.sleep(max(0.0, pause - times[-1]))
    writer.close()
    return size


async def crowd(port: int, readers: int, pause: float, seconds: float) -> tuple[list[float], int]:
    request = f"GET /papers?date={DAY} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    times: list[float] = []
    end = time.perf_counter() + seconds
    sizes = await asyncio.gather(*(read(port, request, pause, end, times) for _ in range(readers)))
    return times, max(sizes)


def voting(folder: Path, until: threading.Event) -> None:
    """Somebody upvotes a paper and takes it back, twice a second."""
    from thalweg.desk.database import Database
    from thalweg.desk.people import Person, invite, join
    from thalweg.desk.votes import set_vote

    database = Database(folder / "data")
    person: Person = join(database, invite(database, "Ada"), "Ada", "a long winding river")
    up = False
    while not until.wait(0.5):
        up = not up
        set_vote(database, "2611.00003", person, up)


def said(name: str, times: list[float], size: int, seconds: float) -> None:
    cuts = quantiles(times, n=100)
    print(
        f"{name}: {len(times) / seconds:,.0f} pages/s of {size / 1e3:.0f} kB; median "
        f"{median(times) * 1e3:.1f} ms, 95% {cuts[94] * 1e3:.1f} ms ({judged(name, cuts[94], BAR)}), "
        f"99% {cuts[98] * 1e3:.1f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=6.0)
    chosen = parser.parse_known_args()[0]
    readers, seconds = chosen.readers, chosen.seconds
    with tempfile.TemporaryDirectory() as name, desk(Path(name)) as port:
        asyncio.run(crowd(port, 1, 0.0, 1.0))  # the first page reads the catalog
        said("one reader", *asyncio.run(crowd(port, 1, 0.0, 2.0)), 2.0)
        for what, pause in ((f"{readers} readers, a page a second each", 1.0), (f"{readers}, at once", 0.0)):
            said(what, *asyncio.run(crowd(port, readers, pause, seconds)), seconds)
        stop = threading.Event()
        voter = threading.Thread(target=voting, args=(Path(name), stop))
        voter.start()
        for what, pause in ((f"{readers}, a page a second, votes", 1.0), (f"{readers}, at once, votes", 0.0)):
            said(what, *asyncio.run(crowd(port, readers, pause, seconds)), seconds)
        stop.set()
        voter.join()


if __name__ == "__main__":
    main()
