"""Studies are found by looking: a Python file that assigns ``STUDY`` is one, named like its paper."""

from __future__ import annotations

import importlib
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from thalweg._core.checks import nearest
from thalweg.studies.study import Study

__all__ = ["UnknownStudy", "find_study", "study_keys"]

HERE = Path(__file__).parent


class UnknownStudy(ValueError):
    """No study has this key; the message suggests the nearest ones."""


def study_keys(studies: Path | None = None) -> tuple[str, ...]:
    """Keys of the studies in a folder (by default this room's), sorted; imports none of them."""
    files = (HERE if studies is None else Path(studies)).glob("*.py")
    found = (file for file in files if re.search(r"^STUDY\b[^\n]*=", file.read_text(encoding="utf8"), re.M))
    return tuple(sorted(file.stem.replace("_", "-") for file in found))


def find_study(key: str, studies: Path | None = None) -> Any:
    """The study's module: ``STUDY``, and ``run(setting, arm, seed, **config)`` to a ``Trial``.

    Raises:
        UnknownStudy: no file belongs to this key.
        ValueError: the file's ``STUDY`` is no study, or is about another paper.
    """
    known = study_keys(studies)
    if key not in known:
        raise UnknownStudy(f"no study has the key {key!r}{nearest(key, known)}")
    name = key.replace("-", "_")
    if studies is None:
        module: ModuleType = importlib.import_module(f"thalweg.studies.{name}")
    else:
        spec = importlib.util.spec_from_file_location(f"study_{name}", Path(studies) / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    study = module.STUDY
    if not isinstance(study, Study) or study.paper != key:
        got = f"one about {study.paper!r}" if isinstance(study, Study) else type(study).__name__
        raise ValueError(f"{name}.py: STUDY must be a Study of paper {key!r}, got {got}")
    return module
