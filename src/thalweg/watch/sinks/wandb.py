"""Weights & Biases, online or offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.watch.readings import Finding
from thalweg.watch.sink import Row, Sink, brief

__all__ = ["WandbSink"]

LEVELS = {"info": "INFO", "warning": "WARN", "critical": "ERROR"}


class WandbSink(Sink):
    """Readings as metrics over ``thalweg/step``, findings as alerts.

    Args:
        run: a W&B run that is there already, not ended by us. The loop must then leave ``step`` out of its
            own ``run.log``: W&B drops what comes with a step below its count, which our readings raise.
        layers: send the numbers of each layer too.
        init: for ``wandb.init``, such as ``project``, ``mode="offline"``, ``dir``.
    """

    package = "wandb"

    def __init__(self, *, run: Any = None, layers: bool = False, **init: Any):
        super().__init__(layers=layers)
        if run is not None and init:
            raise ValueError(f"run must come without options of wandb.init, got {', '.join(init)} too")
        self.run, self.init, self.ours = run, init, run is None

    def begin(self, name: str, about: Mapping[str, Any], *, start: int, earlier: str | None) -> str:
        if self.ours:
            import wandb

            # A run of its own beside one of the user's, which stays the current one.
            options = {"name": name, "config": dict(about), "reinit": "create_new"}
            if earlier:
                options |= {"id": earlier, "resume": "allow"}
            self.run = wandb.init(**{**options, **self.init})
        self.run.define_metric("thalweg/step", hidden=True)
        # Their own axis: W&B's step must never fall, and ours may, where a number comes late.
        self.run.define_metric("thalweg*", step_metric="thalweg/step")
        return str(self.run.id)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.run.log({"thalweg/step": row.step, **row.numbers})

    def tell(self, finding: Finding) -> None:
        title = f"{finding.name} at step {finding.step}"[:63]
        self.run.alert(title=title, text=brief(finding), level=LEVELS[finding.severity])

    def end(self, outcome: str) -> None:
        if self.ours:
            self.run.finish(exit_code=0 if outcome == "finished" else 1)
