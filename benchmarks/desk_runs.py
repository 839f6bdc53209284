"""The desk's run pages over 50 runs of a million readings each: how long answers take, and how late news are.

``python -m benchmarks desk_runs [--readings N] [--runs N] [--viewers N] [--folder PATH]``. One run is written
through the store as a watched run would be, the others are copies of it, made within SQLite. Pages are asked
for over HTTP from a server of their own process, first of a quiet store, then while another process writes a
run; of that one, viewers are told by server-sent events. Each reading's value is the time at which it was
written, so that the event itself tells how late it is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

import httpx

from benchmarks._bars import judged
from benchmarks.store import A_STEP, copied, write
from thalweg.watch.readings import Reading
from thalweg.watch.store import RunStore

BAR = 0.3  # seconds, for the 95th percentile
PAUSE = 0.25  # seconds between two writes of a watched run
SERVE = (
    "import sys, uvicorn\n"
    "from thalweg.desk.app import create_app\n"
    "uvicorn.run(create_app(sys.argv[1]), port=int(sys.argv[2]), log_level='warning')"
)


def live(path: str, seconds: float) -> None:
    """Write as a watched run does, four times a second, about a hundred steps each; the loss is the time."""
    with RunStore(path, write=True) as store:
        run, step, end = store.begin("live", {}), 0, time.time() + seconds
        while time.time() < end:
            now = time.time()
            rows = [(now, Reading(step + k, "loss", now)) for k in range(1, 101)]
            rows += [
                (now, Reading(step + k, "gradient norm", now, {"a": 1.0, "b": 2.0})) for k in range(1, 101)
            ]
            step += 100
            store.write(run, step, rows, [])
            time.sleep(PAUSE)
        store.end(run, "finished")


@contextmanager
def served(path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(path), str(port)])
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{address}/api/runs?limit=1")
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def words(what: str, times: list[float]) -> str:
    high = quantiles(times, n=20)[-1]
    return f"{what}: median {median(times) * 1e3:.0f} ms, 95% {high * 1e3:.0f} ms ({judged(what, high, BAR)})"


def asked(client: httpx.Client, runs: int, steps: int, times: int) -> None:
    """Print how long each kind of answer takes."""
    source = random.Random(0)
    run = lambda: source.randrange(1, runs + 1)  # noqa: E731

    def window() -> str:
        low = source.randrange(1, steps)
        return f"/api/runs/{run()}/curve?name=loss&from={low}&to={low + source.choice((500, 5_000, 50_000))}"

    kinds = {
        "list of runs": lambda: "/runs",
        "page of a run": lambda: f"/runs/{run()}",
        "curve of a run": lambda: f"/api/runs/{run()}/curve?name={source.choice(('loss', 'gradient norm'))}",
        "window of a curve": window,
        "layers of a reading": lambda: f"/api/runs/{run()}/layers?name=gradient+norm",
        "comparison of six": lambda: (
            "/runs/compare?"
            + "&".join(f"run={one}" for one in source.sample(range(1, runs + 1), min(6, runs)))
        ),
    }
    for name, address in kinds.items():
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            client.get(address()).raise_for_status()
            taken.append(time.perf_counter() - start)
        print(f"  {words(name, taken)}", flush=True)


async def late(address: str, run: int, viewers: int, seconds: float) -> list[float]:
    """Seconds from writing to the event at each of several viewers, in all."""
    found: list[float] = []

    async def view() -> None:
        stream = f"/api/runs/{run}/events?show=loss"
        async with (
            httpx.AsyncClient(base_url=address, timeout=None) as client,
            client.stream("GET", stream) as answer,
        ):
            kind = ""
            async for line in answer.aiter_lines():
                kind = line[7:] if line.startswith("event: ") else kind
                if kind == "readings" and line.startswith("data: "):
                    found.append(time.time() - json.loads(line[6:])["loss"]["value"][-1])

    watching = [asyncio.create_task(view()) for _ in range(viewers)]
    await asyncio.wait(watching, timeout=seconds)
    for one in watching:
        one.cancel()
    return found


def measure(path: Path, readings: int, runs: int, times: int, viewers: int) -> None:
    steps = round(readings / A_STEP)
    start = time.perf_counter()
    write(str(path), "run 1", steps)
    copied(path, runs - 1)
    with RunStore(path, write=True) as store:
        (total,) = store.db.execute("select count(*) from readings").fetchone()
        store.db.execute("pragma wal_checkpoint(truncate)")
    size = path.stat().st_size / 1e9
    print(
        f"{total:,} readings of {runs} runs, {size:.1f} GB, built in {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    with served(path) as address, httpx.Client(base_url=address, timeout=60) as client:
        print("quiet:", flush=True)
        asked(client, runs, steps, times)
        seconds = 30.0
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            writing = pool.apply_async(live, (str(path), 4 * seconds))
            while len(client.get("/api/runs").json()) == runs:
                time.sleep(0.1)
            new = client.get("/api/runs?limit=1").json()[0]["id"]
            for count in (1, viewers):
                found = asyncio.run(late(address, new, count, seconds / 2))
                what = f"from writing to the event, {count} watching"
                print(f"  {words(what, found)}, {len(found)} events", flush=True)
            print("while a process writes:", flush=True)
            asked(client, runs, steps, times)
            writing.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readings", type=int, default=1_000_000, help="of each run")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--times", type=int, default=100, help="how often each page is asked for")
    parser.add_argument("--viewers", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=None, help="where the file is made, and removed again")
    chosen = parser.parse_known_args()[0]
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        path = Path(folder) / "runs.sqlite"
        measure(path, chosen.readings, chosen.runs, chosen.times, chosen.viewers)


if __name__ == "__main__":
    main()
