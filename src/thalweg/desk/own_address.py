"""Where the desk of a data folder is reached: written by the desk while it listens, read by commands."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["address_of", "kept_address", "reached_at"]

NAME = "address.json"
PATIENCE = 5.0  # seconds for an answer of this machine


def reached_at(host: str, port: int) -> str:
    """The address for a browser on this machine, of a desk that listens on ``host``."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextlib.contextmanager
def kept_address(folder: Path, listening: tuple[str, int], links: str) -> Iterator[None]:
    """Keep the address in a desk's data folder until the end of the block.

    A folder that cannot be written is left as it is: the desk then only reads.

    Args:
        folder: the desk's data.
        listening: the host and port of the socket.
        links: what links begin with.
    """
    path, text = folder / NAME, json.dumps({"listening": listening, "links": links})
    new = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        new.write_text(text)
        new.replace(path)
    with contextlib.suppress(OSError):
        new.unlink(missing_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # Another desk may have begun with the same data.
            if path.read_text() == text:
                path.unlink()


def address_of(folder: Path) -> str | None:
    """What links to the desk of this data folder begin with; None if none listens."""
    try:
        said = json.loads((folder / NAME).read_text())
        host, port = said["listening"]
        socket.create_connection((host, port), timeout=PATIENCE).close()
        return str(said["links"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
