"""Run a study: tune every arm, train on every seed, judge, write the evidence."""

from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import platform
import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

import thalweg
from thalweg._core.checks import check_count
from thalweg.studies.discovery import find_study
from thalweg.studies.evidence import CURVE_POINTS, judged, short, write_evidence
from thalweg.studies.study import LEAST_SEEDS, TUNING_SEED, Arm, Config, Setting, Study, Trial
from thalweg.studies.tuning import tuned

__all__ = ["run_studies", "run_study"]

ALL_POINTS = 2000  # of the curves of one study together
Progress = Callable[[int, int, str], Any]
Run = Callable[..., Trial]


def run_study(
    key: str,
    *,
    seeds: int | None = None,
    progress: Progress | None = None,
    folder: Path | None = None,
    studies: Path | None = None,
) -> dict[str, Any]:
    """Run a study from tuning to verdict on one thread, and write ``<key>.json``.

    The same seeds give the same numbers. Nothing is written if the run fails or is interrupted.

    Args:
        key: the paper's key.
        seeds: number of evaluation seeds; by default the study's.
        progress: called as ``progress(done, total, what)`` after every training run.
        folder: where evidence goes; by default ``evidence/`` beside the package.
        studies: where studies are looked for; by default this room.

    Returns:
        The evidence, as :func:`thalweg.studies.load_evidence` gives it back.

    Raises:
        UnknownStudy: no study has this key.
        ValueError: fewer than 3 seeds, or so many that they reach the tuning seeds.
    """
    module = find_study(key, studies)
    study: Study = module.STUDY
    count = check_count("seeds", study.seeds if seeds is None else seeds, low=LEAST_SEEDS)
    if count > TUNING_SEED:
        raise ValueError(f"seeds must be at most {TUNING_SEED}, where the tuning seeds begin, got {count}")
    evaluation = list(range(count))
    tuning = list(range(TUNING_SEED, TUNING_SEED + study.tuning_seeds))
    started = time.process_time()  # not the clock: other work on the machine is not the study's
    with _one_thread():
        run = _counted(module.run, progress, _trials(study, len(evaluation), len(tuning)))
        settings = {one.setting: _measure(one, run, tuning, evaluation) for one in study.settings}
    _thin([arm for one in settings.values() for arm in one["arms"]])
    headline = settings[study.setting]
    content = {
        "paper": study.paper,
        "claim": study.claim,
        "headline": study.setting,
        **{name: headline[name] for name in ("metric", "verdict", "effect", "formula", "spread", "rules")},
        "seeds": evaluation,
        "tuning_seeds": tuning,
        "minutes": round((time.process_time() - started) / 60, 2),
        "date": datetime.date.today().isoformat(),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "thalweg": thalweg.__version__,
        },
        "notes": " ".join([study.notes, *_remarks(settings)]).strip(),
        "settings": settings,
    }
    write_evidence(content, folder)
    return content


def run_studies(
    keys: Sequence[str],
    *,
    jobs: int = 1,
    seeds: int | None = None,
    folder: Path | None = None,
    studies: Path | None = None,
) -> Iterator[tuple[str, dict[str, Any] | Exception]]:
    """Run several studies, ``jobs`` at a time in processes of their own; each key with what came of it.

    Yields:
        (key, evidence), or (key, the exception that ended that study), in order of finishing.
    """
    check_count("jobs", jobs)
    options: dict[str, Any] = {"seeds": seeds, "folder": folder, "studies": studies}
    # Not forked: a forked child of a process that has used torch's threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        running: dict[Future, str] = {pool.submit(run_study, key, **options): key for key in keys}
        try:
            for done in as_completed(running):
                error = done.exception()
                if error is not None and not isinstance(error, Exception):
                    raise error
                yield running[done], error if error is not None else done.result()
        except BaseException:  # also a caller that stops asking: what has not begun never will
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _measure(setting: Setting, run: Run, tuning: list[int], seeds: list[int]) -> dict[str, Any]:
    roles = ["baseline", "method"] + ["reference"] * len(setting.references)
    body: dict[str, Any] = {
        "metric": setting.metric,
        "formula": setting.effect,
        "rules": {name: str(rule) for name, rule in setting.verdict.items()},
        "worst": setting.worst,
        "axes": list(setting.axes),
        "log_y": setting.log_y,
        "arms": [
            {"name": arm.name, "role": role, **_measure_arm(setting, arm, run, tuning, seeds)}
            for arm, role in zip(setting.arms, roles, strict=True)
        ],
    }
    return {**body, **judged(body)}


def _measure_arm(setting: Setting, arm: Arm, run: Run, tuning: list[int], seeds: list[int]) -> dict[str, Any]:
    def train(config: Config, seed: int) -> Trial:
        return run(setting.setting, arm.name, seed, **config)

    choice = tuned(train, arm.grid, tuning, lambda trial: setting.score(trial.score), setting.lower_is_better)
    trials = [train(choice.config, seed) for seed in seeds]
    scores = [setting.score(trial.score) for trial in trials]
    return {
        "config": dict(choice.config),
        "tried": [
            {"config": dict(one.config), "scores": [short(score) for score in one.scores]}
            for one in choice.tried
        ],
        "optimizer": dict(trials[0].optimizer),
        "scores": [short(score) for score in scores],
        "capped": sum(score == setting.worst for score in scores),
        "numbers": {name: [short(trial.numbers[name]) for trial in trials] for name in trials[0].numbers},
        "curve": _curve([trial.curve for trial in trials]),
    }


def _curve(curves: list[tuple[Sequence[float], Sequence[float]]]) -> dict[str, list[float | None]]:
    """Median, least and largest over the seeds; a run that ended early stays at its last value."""
    steps = sorted({step for x, _ in curves for step in x})
    steps = [steps[index] for index in _spaced(len(steps), CURVE_POINTS)]
    rows = []
    for step in steps:
        values = [y[max(0, bisect_right(x, step) - 1)] for x, y in curves]
        # What is no number is drawn as what diverges: off the top.
        values = [value if math.isfinite(value) else math.inf for value in values]
        rows.append([short(f(values)) for f in (median, min, max)])
    middle, low, high = (list(column) for column in zip(*rows, strict=True))
    return {"x": [short(step) for step in steps], "median": middle, "low": low, "high": high}


def _spaced(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` indices, first and last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _thin(arms: list[dict[str, Any]]) -> None:
    """Fewer points for each curve where there are many, so that the evidence stays small."""
    for arm in arms:
        kept = _spaced(len(arm["curve"]["x"]), max(2, ALL_POINTS // len(arms)))
        arm["curve"] = {name: [column[i] for i in kept] for name, column in arm["curve"].items()}


def _remarks(settings: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What a reader should be told without looking: where it holds, what hit a cap or an edge."""
    if len(settings) > 1:
        parts = [f"{name}: {one['effect']:.3g} ({one['verdict']})" for name, one in settings.items()]
        yield f"By setting: {'; '.join(parts)}."
    for name, one in settings.items():
        for arm in one["arms"]:
            label = f"{arm['name']} ({name})" if len(settings) > 1 else arm["name"]
            if arm["capped"]:
                yield f"{arm['capped']} of {len(arm['scores'])} runs of {label} count as {one['worst']:g}."
            for key, value in arm["config"].items():
                values = sorted({attempt["config"][key] for attempt in arm["tried"]})
                if len(values) > 2 and value in (values[0], values[-1]):
                    end = "least" if value == values[0] else "largest"
                    yield f"{label} chose the {end} {key} of its grid."


def _trials(study: Study, seeds: int, tuning: int) -> int:
    arms = [arm for setting in study.settings for arm in setting.arms]
    return sum(seeds + (len(arm.grid) * tuning if len(arm.grid) > 1 else 0) for arm in arms)


def _counted(run: Run, progress: Progress | None, total: int) -> Run:
    done = 0

    def counted(setting: str, arm: str, seed: int, **config: Any) -> Trial:
        nonlocal done
        trial = run(setting, arm, seed, **config)
        done += 1
        if progress is not None:
            progress(done, total, f"{setting}: {arm}")
        return trial

    return counted


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf8")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found[1].strip() if found else platform.machine() or "unknown"
