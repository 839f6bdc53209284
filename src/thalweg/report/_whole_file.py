"""A file that is written whole or not at all, where that can be known before the work is done."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["check_page", "write_whole"]


def check_page(name: str, path: Path) -> None:
    """Make the folder of a page that is to be written.

    Raises:
        ValueError: no file can be written there; it names the argument ``name``.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part"):
            pass
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"{name} must be a file that can be written, got {str(path)!r}: {why}") from None


def write_whole(path: Path, text: str) -> Path:
    """Write ``text``, or leave what was there."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, suffix=".part", delete=False, encoding="utf8"
    ) as part:
        try:
            part.write(text)
            part.flush()
            os.chmod(part.name, 0o644)
            os.replace(part.name, path)
        except BaseException:
            os.unlink(part.name)
            raise
    return path
