"""The header that Inductor compiles once for a machine: made beside the first kernels, not before them.

It takes as long as three kernels do. Until it is there they are compiled with the header as text, each a
little slower.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

# Where the header has been made before, it is found within this time; seconds.
PATIENCE = 1.0
_made: dict[tuple[str, str], Future[str]] = {}


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """Inside of the block nothing waits for the header."""
    from torch._inductor import codecache

    make = getattr(codecache, "_precompile_header", None)
    if make is None:  # a torch that does without
        yield
        return

    def later(header: str, command: str, **options: Any) -> str | None:
        key = header, command
        new = key not in _made
        if new:
            _made[key] = _thread().submit(make, header, command, **options)
        try:
            return _made[key].result(PATIENCE if new else 0)
        except Exception:  # not yet there, or it cannot be made
            return None

    codecache._precompile_header = later  # type: ignore[assignment]
    try:
        yield
    finally:
        codecache._precompile_header = make


@functools.cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "thalweg header")
