"""A sink takes what a run records to somebody else's tracker."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from thalweg.watch.readings import Finding, Reading

__all__ = ["Row", "Sink"]

# What MLflow takes, the least of all.
LONGEST = 250


@dataclass(frozen=True)
class Row:
    """Numbers of one step by name; ``when`` in epoch seconds."""

    step: int
    when: float
    numbers: dict[str, float]


class Sink:
    """Where readings and findings go besides the store; a file in ``watch/sinks`` defines one.

    ``begin`` is called where the run is made; everything else on one thread of the sink's own, so that a slow
    tracker keeps neither the training nor the store waiting. A sink that raises is reported once and left out
    from then on. A sink serves one run.

    Args:
        layers: send the numbers of each layer too.

    Raises:
        ImportError: the tracker is not installed.
    """

    package: str = ""

    def __init__(self, *, layers: bool = False):
        self.layers = layers
        if self.package and find_spec(self.package) is None:
            name = type(self).__name__
            raise ImportError(f"{name} needs the package {self.package}, which is not installed")

    def begin(self, name: str, about: Mapping[str, Any], *, start: int, earlier: str | None) -> str | None:
        """Start a run in the tracker.

        Args:
            name: of the run.
            about: what is known of it: optimizer, lr, model, parameters.
            start: steps taken before; above 0 where a run is resumed.
            earlier: what ``begin`` gave when the run that is resumed began.

        Returns:
            What finds the tracker's run again, to be stored with ours.
        """
        raise TypeError(f"{type(self).__name__} must define begin(name, about, start, earlier)")

    def write(self, rows: Sequence[Row]) -> None:
        """What has been read since the last call; steps mostly rise, but not always."""
        raise TypeError(f"{type(self).__name__} must define write(rows)")

    def tell(self, finding: Finding) -> None:
        """A finding, as the text or alert that the tracker has for it."""

    def end(self, outcome: str) -> None:
        """``finished``, or the name of the exception that ended the run."""

    def numbers(self, reading: Reading) -> dict[str, float]:
        """What is sent of a reading: its value, and that of each layer if they are wanted."""
        found = {tag(f"thalweg/{reading.name}"): reading.value}
        if self.layers:
            # A section of its own: hundreds of layers would bury the values of the whole model.
            found |= {tag(f"thalweg {reading.name}/{one}"): value for one, value in reading.layers.items()}
        return found


def tag(name: str) -> str:
    """A name that every tracker takes: some refuse or rewrite brackets, paths upwards, long names."""
    clean = re.sub(r"[^\w./ -]", "_", name)
    return "/".join(part for part in clean.split("/") if part.strip(". "))[:LONGEST].rstrip("/ ")


def brief(finding: Finding) -> str:
    """What a finding says, without its code: trackers show it in a small place."""
    return "\n".join([finding.message, *(f"try: {one.title} ({one.paper})" for one in finding.remedies)])
