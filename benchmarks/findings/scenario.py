"""What a scenario is: a run with a planted fault and its twin without, or a run in which nothing is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch

from benchmarks.findings.loop import Outcome
from thalweg._core.discover import modules

# The loss that a healthy run has reached is the mean over its last steps.
LAST = 20


@dataclass(frozen=True)
class Planted:
    """A run in which something is wrong.

    Attributes:
        finding: name of the finding that must come.
        fault: in words, such as "learning rate times 8 at step 150".
        task, model, optimizer: as they appear in the table.
        run: ``run(seed, planted)``; with ``planted=False`` the twin: the same run without the fault.
        onset: step at which the fault is planted.
    """

    finding: str
    fault: str
    task: str
    model: str
    optimizer: str
    run: Callable[[int, bool], Outcome]
    onset: int = 0

    def outcome(self, seed: int, planted: bool = True) -> Outcome:
        """One run, which depends on its seed only: torch's own random numbers begin there too."""
        torch.manual_seed(seed)
        return self.run(seed, planted)


@dataclass(frozen=True)
class Healthy:
    """A run in which nothing is wrong, and how that is seen: it reaches a loss, an accuracy, or both.

    Attributes:
        task, model, optimizer: as they appear in the table.
        run: ``run(seed)``.
        loss: what the mean training loss of the last 20 steps is at most.
        accuracy: what the accuracy on held-out data is at least in the end.

    Raises:
        ValueError: if it says neither.
    """

    task: str
    model: str
    optimizer: str
    run: Callable[[int], Outcome]
    loss: float = math.inf
    accuracy: float = -math.inf

    def __post_init__(self) -> None:
        if self.loss == math.inf and self.accuracy == -math.inf:
            raise ValueError(
                f"loss or accuracy must say when {self.model} on {self.task} has learnt, got neither"
            )

    def outcome(self, seed: int) -> Outcome:
        """One run, which depends on its seed only."""
        torch.manual_seed(seed)
        return self.run(seed)

    def learnt(self, outcome: Outcome) -> bool:
        """Whether the run reached what it must have reached to count as healthy."""
        reached = fmean(outcome.losses[-LAST:]) <= self.loss
        return reached and (self.accuracy == -math.inf or outcome.accuracy >= self.accuracy)


def all_planted() -> dict[str, Planted]:
    """Every scenario in ``planted/``, by its file and its name there, as in ``gradient_spike.digits``."""
    return _found("planted", Planted)


def all_healthy() -> dict[str, Healthy]:
    """Every scenario in ``healthy/``."""
    return _found("healthy", Healthy)


def _found(folder: str, kind: type) -> dict:
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": value
        for module in modules(f"benchmarks.findings.{folder}")
        for name, value in sorted(vars(module).items())
        if isinstance(value, kind)
    }
