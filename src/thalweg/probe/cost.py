"""What a probe costs, said by the probe itself, so that whoever schedules it can plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from thalweg._core.checks import check_count

__all__ = ["Cost", "costs"]

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Cost:
    """Passes over the probe's batch at default arguments, as a ceiling, and extra memory in words.

    Attributes:
        forwards: forward passes.
        backwards: backward passes.
        hvps: Hessian-vector products, each worth about two gradients, since the graph of the first is kept.
        memory: what is held while the probe runs, beside the model.
    """

    forwards: int
    backwards: int
    hvps: int = 0
    memory: str = ""


def costs(forwards: int, backwards: int, hvps: int = 0, memory: str = "") -> Callable[[F], F]:
    """Declare the cost of a probe as ``probe.cost``.

    Raises:
        ValueError: a count is not an integer of at least 0.
    """
    counts = {"forwards": forwards, "backwards": backwards, "hvps": hvps}
    cost = Cost(**{name: check_count(name, count, 0) for name, count in counts.items()}, memory=memory)

    def declare(probe: F) -> F:
        vars(probe)["cost"] = cost
        return probe

    return declare
