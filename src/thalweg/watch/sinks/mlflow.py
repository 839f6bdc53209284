"""MLflow: a tracking server, or an SQLite file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thalweg.watch.readings import Finding
from thalweg.watch.sink import Row, Sink, tag

__all__ = ["MLflowSink"]

# What MLflow takes at once, and how long a tag may be.
AT_ONCE = 1000
LONGEST = 5000


class MLflowSink(Sink):
    """Readings as metrics, what is known of the run as parameters, findings as tags.

    Args:
        uri: such as ``sqlite:///mlflow.db`` or a server's address; by default MLflow's own choice.
        experiment: by name, made if need be.
        run: id of an MLflow run that is there already; it is not ended by us.
        layers: send the numbers of each layer too.
    """

    package = "mlflow"

    def __init__(
        self,
        uri: str | None = None,
        *,
        experiment: str = "thalweg",
        run: str | None = None,
        layers: bool = False,
    ):
        super().__init__(layers=layers)
        self.uri, self.experiment, self.ours = uri, experiment, run is None
        self.run = run or ""

    def begin(self, name: str, about: Mapping[str, Any], *, start: int, earlier: str | None) -> str:
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=self.uri)
        self.run = self.run or earlier or ""
        if not self.run:
            known = self.client.get_experiment_by_name(self.experiment)
            place = known.experiment_id if known else self.client.create_experiment(self.experiment)
            self.run = self.client.create_run(place, run_name=name).info.run_id
            for key, value in about.items():
                self.client.log_param(self.run, key, value)
        elif self.ours:
            self.client.update_run(self.run, status="RUNNING")
        return self.run

    def write(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, value, int(row.when * 1000), row.step)
            for row in rows
            for name, value in row.numbers.items()
        ]
        for first in range(0, len(metrics), AT_ONCE):
            self.client.log_batch(self.run, metrics=metrics[first : first + AT_ONCE])

    def tell(self, finding: Finding) -> None:
        key = tag(f"thalweg/{finding.step:08d} {finding.name}")
        self.client.set_tag(self.run, key, str(finding)[:LONGEST])

    def end(self, outcome: str) -> None:
        if self.ours:
            self.client.set_terminated(self.run, "FINISHED" if outcome == "finished" else "FAILED")
