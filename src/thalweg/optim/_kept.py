"""Compiled kernels kept on disk, so that a later process needs neither to trace nor to compile them.

A record says where Inductor has put a kernel's wrapper and library and how a call is wired to them. Its name
is a hash of all that the kernel depends on: the sources of this room, torch, the processor, and the structure
of the pass. Kernels of parts from elsewhere, whose sources are not known, are not kept.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOM = "thalweg.optim"


def name_of(*parts: Any) -> str | None:
    """The name under which a kernel of this structure is kept; None if it holds what has no name."""
    try:
        described = repr([_portable(one) for one in parts])
    except ValueError:
        return None
    return hashlib.sha256(f"{_surroundings()} {described}".encode()).hexdigest()[:32]


def read(name: str) -> dict[str, Any] | None:
    """The record of that name, if there is one and the files that it names are there."""
    try:
        record = json.loads((_folder() / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None
    return record if all(os.path.exists(record[one]) for one in ("wrapper", "library")) else None


def write(name: str, record: dict[str, Any]) -> None:
    """Keep a record; what cannot be written is compiled again next time."""
    try:
        _folder().mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile("w", dir=_folder(), suffix=".part", delete=False) as file:
            json.dump(record, file)
        os.replace(file.name, _folder() / f"{name}.json")
    except OSError:
        pass


def wrapper(path: str, options: dict[str, Any]) -> Callable[[list[Any]], Any]:
    """The function in a wrapper that Inductor has written: a list of inputs, which it empties, to outputs.

    ``options`` are those it was compiled with: it looks for its library by them.
    """
    import torch._inductor.config as config  # which loading it imports anyway

    spec = importlib.util.spec_from_file_location(f"{ROOM}._kept_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with config.patch(options):
        spec.loader.exec_module(module)
    return module.call


def _folder() -> Path:
    # Beside what Inductor keeps where that has been moved; else where only this user can write.
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(given) / "thalweg" if given else Path.home() / ".cache" / "thalweg" / "kernels"


@functools.cache
def _surroundings() -> str:
    """A hash of the sources of this room, of the versions and of the processor."""
    sources = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        sources.update(path.read_bytes())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    about = (platform.machine(), sorted(processor), sys.version, torch.__version__, torch.get_num_threads())
    return f"{sources.hexdigest()} {about}"


def _portable(value: Any) -> Any:
    """A structure with names for functions; ValueError for what may be something else tomorrow."""
    if isinstance(value, (tuple, list)):
        return [_portable(one) for one in value]
    if value is None or isinstance(value, (str, int, float, bool, torch.dtype, torch.device)):
        return repr(value)
    if callable(value) and str(getattr(value, "__module__", "")).startswith(ROOM):
        name = value.__qualname__
        if "<" not in name:
            return f"{value.__module__}.{name}"
    raise ValueError(value)
