"""Run scenarios over seeds, in several processes, and keep each result as soon as it is there.

Results go to ``runs/finding-rates-CODE.jsonl``, where CODE stands for the sources: a measurement that is
interrupted goes on where it was, and one of changed sources begins anew.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
import traceback
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.findings.judge import alarms, infos, step_found, step_shown
from benchmarks.findings.scenario import LAST, all_healthy, all_planted

ROOT = Path(__file__).parents[2]
SOURCES = ("benchmarks/findings", *(f"src/thalweg/{room}" for room in ("_core", "watch", "probe", "optim")))
SOURCES += tuple(f"src/thalweg/{room}" for room in ("nn", "tasks", "surgery"))

# (planted or healthy, scenario, seed)
Job = tuple[str, str, int]
Result = dict[str, Any]


def jobs(seeds: Iterable[int], only: Sequence[str] = ()) -> list[Job]:
    """Every scenario at every seed, seeds outermost; ``only`` those whose name or finding holds such a word.

    Raises:
        ValueError: if there is no such scenario.
    """
    words = {("planted", key): f"planted {key} {one.finding}" for key, one in all_planted().items()}
    words |= {("healthy", key): f"healthy {key}" for key in all_healthy()}
    chosen = [where for where, text in words.items() if not only or any(word in text for word in only)]
    if not chosen:
        raise ValueError(f"only must name a scenario, its finding, or healthy; got {', '.join(only)}")
    return [(kind, key, seed) for seed in seeds for kind, key in chosen]


def run_job(job: Job) -> Result:
    """One run, or a planted one and its twin, in a few numbers."""
    kind, key, seed = job
    began = time.perf_counter()
    torch.set_num_threads(1)
    try:
        found = _planted(key, seed) if kind == "planted" else _healthy(key, seed)
    except Exception:
        found = {"error": traceback.format_exc()}
    return {"kind": kind, "scenario": key, "seed": seed, **found, "seconds": time.perf_counter() - began}


def _planted(key: str, seed: int) -> Result:
    scenario = all_planted()[key]
    run, twin = scenario.outcome(seed), scenario.outcome(seed, planted=False)
    return {
        "found": step_found(run.findings, scenario.finding, scenario.onset),
        "shown": step_shown(run.losses, twin.losses, scenario.onset),
        "early": any(one.name == scenario.finding for one in run.findings if _before(one, scenario.onset)),
        "twin": any(one.name == scenario.finding for one in twin.findings),
        "also": alarms(run.findings, but=[scenario.finding]),
    }


def _before(finding: Any, onset: int) -> bool:
    return finding.found is not None and finding.found < onset


def _healthy(key: str, seed: int) -> Result:
    scenario = all_healthy()[key]
    run = scenario.outcome(seed)
    loss, accuracy = fmean(run.losses[-LAST:]), run.accuracy
    return {
        "learnt": scenario.learnt(run),
        "loss": loss if math.isfinite(loss) else None,
        "accuracy": accuracy if math.isfinite(accuracy) else None,
        "steps": len(run.losses),
        "alarms": alarms(run.findings),
        "infos": infos(run.findings),
    }


def measured(wanted: Sequence[Job], processes: int = 1, folder: Path = ROOT / "runs") -> list[Result]:
    """The results of all jobs, in order; those that are in the folder already are not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"finding-rates-{code()}.jsonl"
    results = _kept(path)
    rest = [job for job in wanted if job not in results]
    if len(rest) < len(wanted):
        print(f"{len(wanted) - len(rest)} of {len(wanted)} runs are in {path} already", flush=True)
    began = said = time.perf_counter()
    with path.open("a", encoding="utf8") as file, _pool(processes) as pool:
        waiting = {pool.submit(run_job, job): job for job in rest}
        try:
            for done, future in enumerate(as_completed(waiting), 1):
                result = results[waiting[future]] = future.result()
                # The line break comes first: the last line of a killed measurement may lack its own.
                file.write("\n" + json.dumps(result))
                file.flush()
                now = time.perf_counter()
                if now - said > 30:
                    said, left = now, (now - began) / done * (len(rest) - done)
                    print(f"{done} of {len(rest)} runs; about {left / 60:.0f} minutes left", flush=True)
        except BaseException:
            # Nobody waits for runs whose results nobody takes.
            for process in active_children():
                process.kill()
            raise
    return [results[job] for job in wanted]


def _pool(processes: int) -> ProcessPoolExecutor:
    # A process that is forked from one in which torch has run may wait for threads that it has not got.
    # An interruption is the parent's to handle.
    deaf = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(processes, get_context("spawn"), *deaf)


def _kept(path: Path) -> dict[Job, Result]:
    """What an earlier measurement has left; a last line that was cut off is no result, nor is an error."""
    found: dict[Job, Result] = {}
    for line in path.read_text(encoding="utf8").splitlines() if path.is_file() else ():
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if "error" not in result:
            found[result["kind"], result["scenario"], result["seed"]] = result
    return found


def code() -> str:
    """A name for the sources that decide the results."""
    files = sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*.py"))
    mark = hashlib.sha256(torch.__version__.encode())
    for file in files:
        mark.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return mark.hexdigest()[:12]
