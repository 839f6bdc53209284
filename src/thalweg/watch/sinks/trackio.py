"""trackio: a local SQLite file a project, or a Space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import Context
from typing import Any

from thalweg.watch.readings import Finding
from thalweg.watch.sink import Row, Sink, brief

__all__ = ["TrackioSink"]

LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}


class TrackioSink(Sink):
    """Readings as metrics, findings as alerts.

    Args:
        project: of trackio, made if need be.
        run: a trackio run that is there already; it is not ended by us.
        layers: send the numbers of each layer too.
        init: for ``trackio.init``, such as ``group``, ``space_id``, ``auto_log_cpu=False``.
    """

    package = "trackio"

    def __init__(self, project: str = "thalweg", *, run: Any = None, layers: bool = False, **init: Any):
        super().__init__(layers=layers)
        if run is not None and init:
            raise ValueError(f"run must come without options of trackio.init, got {', '.join(init)} too")
        self.project, self.run, self.init, self.ours = project, run, init, run is None

    def begin(self, name: str, about: Mapping[str, Any], *, start: int, earlier: str | None) -> str:
        if self.ours:
            import trackio

            options: dict[str, Any] = {"name": earlier or name, "config": dict(about)}
            options["resume"] = "must" if earlier else "never"
            # It would end the user's current run and take its place: where it looks, there is none.
            self.run = Context().run(trackio.init, self.project, **{**options, **self.init})
        return str(self.run.name)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.run.log(dict(row.numbers), step=row.step)

    def tell(self, finding: Finding) -> None:
        from trackio import AlertLevel

        level = AlertLevel[LEVELS[finding.severity]]
        self.run.alert(finding.name, brief(finding), level=level, step=finding.step)

    def end(self, outcome: str) -> None:
        if self.ours:
            self.run.finish()
