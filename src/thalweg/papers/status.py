"""How far a paper has come here, computed from what exists: its parts, its study, its evidence.

Nobody types a status, so none can be wrong. Parts are looked for in the source text (top-level
definitions), never imported: asking for the status of every paper loads no torch.
"""

from __future__ import annotations

import ast
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from thalweg.papers.entry import Entry, find

PACKAGE = Path(__file__).parents[1]
STATES = ("planned", "partial", "working")


@dataclass(frozen=True)
class Status:
    """``state`` is planned (nothing exists), partial, or working (everything exists); ``reasons`` say why."""

    state: str
    reasons: tuple[str, ...]
    parts_present: tuple[str, ...]
    parts_missing: tuple[str, ...]
    has_study: bool
    has_evidence: bool


def status(paper: Entry | str, *, package: Path = PACKAGE, evidence: Path | None = None) -> Status:
    """The status of a paper, given as an entry or a key.

    Args:
        package: the folder of the ``thalweg`` package.
        evidence: the folder of ``<key>.json`` files; the one that belongs to ``package`` when left out.

    Raises:
        UnknownPaper: no paper has this key.
    """
    entry = find(paper) if isinstance(paper, str) else paper
    folder = evidence_folder(package) if evidence is None else evidence
    present = tuple(part for part in entry.parts if _exists(part, package))
    missing = tuple(part for part in entry.parts if part not in present)
    study_file = package / "studies" / f"{entry.key.replace('-', '_')}.py"
    has_study = study_file.is_file()
    _, fault = _read_evidence(folder / f"{entry.key}.json")
    needs_parts = entry.form != "study"

    reasons = [f"part {part} exists" for part in present]
    reasons += [f"part {part} does not exist yet" for part in missing]
    if needs_parts and not entry.parts:
        reasons.append("no part is named yet")
    reasons.append(f"study studies/{study_file.name} {'exists' if has_study else 'does not exist yet'}")
    reasons.append(fault or f"evidence {entry.key}.json exists")

    parts_done = not missing and (bool(present) or not needs_parts)
    if parts_done and has_study and not fault:
        state = "working"
    elif present or has_study or not fault:
        state = "partial"
    else:
        state = "planned"
    return Status(state, tuple(reasons), present, missing, has_study, not fault)


def code_of(entry: Entry, found: Status) -> str:
    """What to paste: the usage where every part of it exists, else import lines of what does."""
    if entry.usage and not found.parts_missing:
        return entry.usage
    return "\n".join(import_lines(found.parts_present))


def import_lines(parts: Iterable[str]) -> list[str]:
    """Import paths as lines to paste, one a module."""
    names: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        module, _, name = part.rpartition(".")
        names[module].append(name)
    return [f"from {module} import {', '.join(held)}" for module, held in names.items()]


def evidence_folder(package: Path = PACKAGE) -> Path:
    """``evidence/`` in the root of a checkout; inside the package once it is installed."""
    root = package.parent.parent
    in_checkout = package.parent.name == "src" and (root / "pyproject.toml").is_file()
    return (root if in_checkout else package) / "evidence"


def read_evidence(key: str, folder: Path | None = None) -> dict[str, Any] | None:
    """What was measured for the paper, or None where there is no readable evidence with a verdict."""
    return _read_evidence((evidence_folder() if folder is None else folder) / f"{key}.json")[0]


def _read_evidence(path: Path) -> tuple[dict[str, Any] | None, str]:
    """The content and an empty string, or None and what is wrong."""
    if not path.is_file():
        return None, f"evidence {path.name} does not exist yet"
    try:
        content = json.loads(path.read_text(encoding="utf8"))
    except (OSError, ValueError) as error:
        return None, f"evidence {path.name} cannot be read: {error}"
    verdict = content.get("verdict") if isinstance(content, dict) else None
    if not isinstance(verdict, str) or not verdict.strip():
        return None, f"evidence {path.name} holds no verdict"
    return content, ""


def _exists(part: str, package: Path) -> bool:
    """Whether an import path such as ``thalweg.optim.Lion`` is defined, judged from the source text alone."""
    *folders, name = part.split(".")[1:]
    place = package.joinpath(*folders)
    if place.is_dir():
        files = [file for file in place.glob("*.py") if not file.name.startswith("_")]
        if (place / "__init__.py").is_file():
            files.append(place / "__init__.py")
        return (place / name / "__init__.py").is_file() or any(name in _defined_in(file) for file in files)
    file = place.with_suffix(".py")
    return file.is_file() and name in _defined_in(file)


def _defined_in(file: Path) -> frozenset[str]:
    return _parse(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=2048)
def _parse(file: Path, modified: int) -> frozenset[str]:
    """Names bound at the top level of ``file``; ``modified`` makes the cache forget an edited file."""
    try:
        body = ast.parse(file.read_text(encoding="utf8")).body
    except (OSError, SyntaxError, ValueError):
        return frozenset()
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(
                leaf.id
                for target in node.targets
                for leaf in ast.walk(target)
                if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom) and file.name == "__init__.py":
            names.update(alias.asname or alias.name for alias in node.names)
    return frozenset(names)
