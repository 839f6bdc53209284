"""TensorBoard: event files in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from thalweg.watch.readings import Finding
from thalweg.watch.sink import Row, Sink, tag

__all__ = ["TensorBoardSink"]

# Seconds between writes to the disk, so that a page that is open follows the run.
FLUSH = 10
# Bytes of a folder's name.
LONGEST = 200


class TensorBoardSink(Sink):
    """Scalars for ``tensorboard --logdir folder``, and each finding as a text.

    Args:
        folder: gets a subfolder for the run, called like it.
        layers: send the numbers of each layer too.
    """

    package = "tensorboard"

    def __init__(self, folder: str | Path, *, layers: bool = False):
        super().__init__(layers=layers)
        self.folder = Path(folder)

    def begin(self, name: str, about: Mapping[str, Any], *, start: int, earlier: str | None) -> str:
        from torch.utils.tensorboard import SummaryWriter

        path = Path(earlier) if earlier else self._new(_folders(name))
        # What an interrupted run wrote behind the step from which it goes on is hidden.
        purge = start + 1 if earlier else None
        self.writer = SummaryWriter(str(path), purge_step=purge, flush_secs=FLUSH)
        if not earlier:
            rows = "".join(f"| {key} | {value} |\n" for key, value in about.items())
            self.writer.add_text("thalweg/run", f"| | |\n|---|---|\n{rows}", start)
        return str(path.absolute())

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for name, value in row.numbers.items():
                self.writer.add_scalar(name, value, row.step, walltime=row.when)

    def tell(self, finding: Finding) -> None:
        lines = "".join(f"    {line}\n" for line in str(finding).splitlines())
        self.writer.add_text(tag(f"thalweg findings/{finding.name}"), lines, finding.step)

    def end(self, outcome: str) -> None:
        self.writer.close()

    def _new(self, name: str) -> Path:
        """A folder that no earlier run has used: curves of two runs in one cannot be told apart."""
        path, count = self.folder / name, 1
        while path.exists():
            count += 1
            path = self.folder / f"{name} {count}"
        return path


def _folders(name: str) -> str:
    """A name as a path below the sink's folder, no part of it longer than file systems take."""
    parts = (part.encode()[:LONGEST].decode(errors="ignore") for part in tag(name).split("/"))
    return "/".join(parts) or "run"
