"""The run store at ten million readings: how long a page's queries take, and how fast it is written.

``python -m benchmarks store [--readings N] [--runs N] [--folder PATH]``. One run is written through the store
as a watched run would be, a few hundred readings at a time; the others are copies of it, made within SQLite.
Then pages about runs are asked for, and the same while another process writes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles

from benchmarks._bars import judged
from thalweg.report.page import PANELS
from thalweg.watch.readings import Finding, Reading
from thalweg.watch.store import RunStore

# Every how many steps each reading comes, and of how many layers.
SERIES = {
    "loss": (1, 0),
    "gradient norm": (1, 8),
    "weight norm": (10, 8),
    "softmax collapse": (5, 0),
    "train accuracy": (10, 0),
    "test accuracy": (10, 0),
    "test loss": (10, 0),
    "sharpness": (20, 0),
    "dormant units": (20, 3),
}
A_STEP = sum(1 / every for every, _ in SERIES.values())
AT_ONCE = 100
NAMES = [name for panel in PANELS for name in panel.parts]
BAR = 0.2


def readings(steps: int, seed: int) -> Iterator[list[tuple[float, Reading]]]:
    """What a run of so many steps records, ``AT_ONCE`` steps at a time."""
    source = random.Random(seed)
    layers = {name: [f"layer {k}.weight" for k in range(count)] for name, (_, count) in SERIES.items()}
    for first in range(1, steps + 1, AT_ONCE):
        rows = []
        for step in range(first, min(first + AT_ONCE, steps + 1)):
            for name, (every, _) in SERIES.items():
                if step % every == 0:
                    value = math.exp(-step / steps) * source.lognormvariate(0, 0.3)
                    parts = dict.fromkeys(layers[name], value)
                    rows.append((time.time(), Reading(step, name, value, parts)))
        yield rows


def write(path: str, name: str, steps: int, seconds: float = math.inf) -> tuple[int, float]:
    """Write a run, for so many steps or seconds; gives how many readings in how many seconds of writing."""
    written, busy, end = 0, 0.0, time.perf_counter() + seconds
    with RunStore(path, write=True) as store:
        run = store.begin(name, {"optimizer": "AdamW", "lr": 1e-3})
        for rows in readings(steps, seed=run):
            told = rows[0][1].step % 10_000 == 1
            found = [Finding("gradient spike", rows[0][1].step, "", {})] if told else []
            start = time.perf_counter()
            if start > end:
                break
            store.write(run, rows[-1][1].step, rows, found)
            busy += time.perf_counter() - start
            written += len(rows)
        store.end(run, "finished")
    return written, busy


def copied(path: Path, copies: int) -> None:
    """More runs with the readings of the first."""
    with RunStore(path, write=True) as store:
        series = store.db.execute("select id, name, layers from series where run = 1").fetchall()
        for copy in range(copies):
            run = store.begin(f"run {copy + 2}", {"optimizer": "AdamW", "lr": 1e-3})
            store.db.execute("begin")
            for old, name, layers in series:
                row = (run, name, layers)
                insert = "insert into series (run, name, layers) values (?, ?, ?)"
                new = store.db.execute(insert, row).lastrowid
                for table, rest in (
                    ("readings", "step, time, value, layers, extra"),
                    ("coarse", "width, bucket, low, low_step, high, high_step"),
                ):
                    store.db.execute(
                        f"insert into {table} select ?, {rest} from {table} where series = ?", (new, old)
                    )
            store.db.execute(
                "insert into findings (run, step, time, finding) "
                "select ?, step, time, finding from findings where run = 1",
                (run,),
            )
            store.db.execute("commit")


def page(path: Path, run: int) -> float:
    """Seconds to open the store and get all that a page about one run shows."""
    start = time.perf_counter()
    with RunStore(path) as store:
        store.runs()
        store.names(run)
        store.findings(run)
        points = [len(store.overview(run, name)) for name in NAMES]
    taken = time.perf_counter() - start
    assert min(points) > 100, points
    return taken


def words(what: str, times: list[float]) -> str:
    high = quantiles(times, n=20)[-1]
    return f"{what}: median {median(times) * 1e3:.1f} ms, 95% {high * 1e3:.1f} ms ({judged(what, high, BAR)})"


def measure(path: Path, count: int, runs: int, pages: int) -> None:
    steps = round(count / runs / A_STEP)
    written, busy = write(str(path), "run 1", steps)
    print(f"written alone: {written / busy:,.0f} readings/s", flush=True)
    start = time.perf_counter()
    copied(path, runs - 1)
    with RunStore(path) as store:
        (total,) = store.db.execute("select count(*) from readings").fetchone()
        (kept,) = store.db.execute("select count(*) from coarse").fetchone()
    size = sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))
    print(
        f"{total:,} readings of {runs} runs of {steps:,} steps: {size / 1e6:,.0f} MB, "
        f"{size / total:.0f} bytes a reading, {kept / total:.0%} as many rows of extremes; copied in "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )
    source = random.Random(0)
    chosen = [source.randrange(1, runs + 1) for _ in range(pages)]
    what = f"a page's queries ({len(NAMES)} curves)"
    print(words(what, [page(path, run) for run in chosen]), flush=True)
    with RunStore(path) as store:
        start = time.perf_counter()
        found = len(store.readings(1, "gradient norm"))
        taken = time.perf_counter() - start
        print(f"one curve of {found:,} readings in full: {taken * 1e3:.0f} ms", flush=True)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        writing = pool.apply_async(write, (str(path), "live", 10**9, 8.0))
        time.sleep(3)
        what = "the same while another process writes"
        print(words(what, [page(path, run) for run in chosen[:100]]))
        written, busy = writing.get()
    print(f"written while that was read: {written / busy:,.0f} readings/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readings", type=int, default=10_000_000)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=None, help="where the file is made, and removed again")
    chosen = parser.parse_known_args()[0]
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        measure(Path(folder) / "runs.sqlite", chosen.readings, chosen.runs, chosen.pages)


if __name__ == "__main__":
    main()
