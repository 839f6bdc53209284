"""The report: findings, what to try, and the curves, as one HTML file that needs nothing else."""

from __future__ import annotations

import html
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from thalweg import papers
from thalweg.report._chosen_findings import chosen_findings
from thalweg.report._whole_file import check_page, write_whole
from thalweg.report.figures import CURVES, Line, draw
from thalweg.watch._store_file import in_words
from thalweg.watch.readings import Finding
from thalweg.watch.store import RunInfo, RunStore

__all__ = ["write_report"]


LEGEND = 30  # letters of a run's name
LISTED = 20  # ids in an error


@dataclass(frozen=True)
class Panel:
    """What is drawn together: readings by name, with a label each where there are several."""

    title: str
    unit: str
    parts: Mapping[str, str]
    log: bool = False


PANELS = (
    Panel("Accuracy", "share correct", {"train accuracy": "train", "test accuracy": "test"}),
    Panel("Loss", "loss", {"loss": "train", "test loss": "test"}, log=True),
    Panel("Softmax collapse", "share of examples", {"softmax collapse": ""}),
    Panel("Gradient norm", "loss per unit of weight", {"gradient norm": ""}, log=True),
    Panel("Weight norm", "Euclidean norm of all weights", {"weight norm": ""}),
    Panel("Sharpness", "top (preconditioned) eigenvalue", {"sharpness": ""}, log=True),
    Panel("Dormant units", "share of hidden units", {"dormant units": ""}),
)


def write_report(
    store: str | Path,
    path: str | Path,
    *,
    runs: Sequence[int] | None = None,
    title: str = "thalweg report",
    lead: str = "",
    table: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write a page about some runs of a store; the first is the one that others are compared with.

    Args:
        store: a run store.
        path: the HTML file; written whole or not at all.
        runs: ids; by default the latest run.
        lead: a sentence or two below the title.
        table: rows of a comparison, each with the same keys in the same order.

    Raises:
        ValueError: the store is none, is damaged or has no such run, or no file can be written at ``path``.
    """
    check_page("path", Path(path))
    with in_words(store), RunStore(store) as opened:
        known = {one.id: one for one in opened.runs()}
        if not known:
            raise ValueError(f"store {str(store)!r} holds no run yet")
        chosen = list(dict.fromkeys(runs)) if runs is not None else [max(known)]
        for one in chosen:
            if one not in known:
                raise ValueError(f"run must be one of {_ids(list(known))}, got {one!r}")
        infos = [known[one] for one in chosen]
        findings = {info.id: chosen_findings(opened, info.id) for info in infos}
        panels = _panels(opened, infos, findings[infos[0].id].shown if len(infos) == 1 else ())
    environment = Environment(loader=PackageLoader("thalweg.report"), autoescape=True, trim_blocks=True)
    environment.filters["number"] = lambda value: f"{value:.4g}" if isinstance(value, float) else value
    text = environment.get_template("report.html").render(
        title=title,
        lead=lead,
        table=table,
        runs=[(info, findings[info.id]) for info in infos],
        panels=panels,
        paper=_paper,
        made=f"{datetime.now():%Y-%m-%d %H:%M}",
        versions=_versions(),
    )
    return write_whole(Path(path), text)


def _panels(store: RunStore, infos: Sequence[RunInfo], marks: Sequence[Finding]) -> list[tuple[str, str]]:
    """Pictures, each behind what it shows."""
    drawn = []
    for panel in PANELS:
        lines: list[Line] = []
        last: list[str] = []
        for run, info in enumerate(infos):
            if len(lines) >= CURVES:
                break
            for part, (name, label) in enumerate(panel.parts.items()):
                readings = store.overview(info.id, name)
                if not readings:
                    continue
                which = _short(info.name) if len(infos) > 1 else ""
                words = [word for word in (which, label) if word]
                lines.append(Line(", ".join(words), readings, run, part))
                end = f"{readings[-1].value:.3g}"
                if broken := store.gaps(info.id, name, 1, low=readings[-1].step + 1):
                    end = f"not finite from step {broken[0]} on"
                if broken or part == len(panel.parts) - 1:
                    last.append(" ".join([*words, end]))
        if lines:
            title = f"{panel.title}: {'; '.join(last)}" if last else panel.title
            title += " at the end" if last and not last[-1].endswith(" on") else ""
            if (shown := len({line.run for line in lines[:CURVES]})) < len(infos) and len(lines) >= CURVES:
                title += f" ({shown} of {len(infos)} runs)"
            drawn.append((title, draw(title, panel.unit, lines, marks, panel.log)))
    return drawn


def _ids(known: Sequence[int]) -> str:
    words = [str(one) for one in known]
    return ", ".join(words if len(words) <= LISTED else [*words[:3], "...", *words[-3:]])


def _short(name: str) -> str:
    """A run's name, as far as a legend has room for it."""
    return name if len(name) <= LEGEND else f"{name[: LEGEND - 1]}…"


def _paper(key: str) -> dict[str, str]:
    """What the page says of a paper; a key that the catalog lacks is shown as it stands."""
    try:
        entry = papers.find(key)
    except ValueError:
        return {"key": key, "title": key, "link": ""}
    return {"key": key, "title": html.unescape(entry.title), "link": entry.link or ""}


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("thalweg", "torch"))
    return f"{packages}, Python {platform.python_version()}, {os.cpu_count()} cores"
