"""How much of a run's time was training, and how much of it watching took."""

from __future__ import annotations

from dataclasses import dataclass

from thalweg.watch.budget import Budget

__all__ = ["Clock"]

# A hook's clock sees neither the call that led there nor the caches that it leaves cold. That it misses as
# much again is a guess on the safe side; benchmarks/watch_overhead.py measures what watching really costs.
HIDDEN = 2.0


@dataclass
class Clock:
    """Seconds that the budget has not been told of yet.

    Attributes:
        since: when it was last told; 0 before the first look.
        last: when the latest look ended.
        own, paid: seconds since then in our own calls, and in sensors.
        busy: processor seconds of the recorder that it has been told of.
    """

    since: float = 0.0
    last: float = 0.0
    own: float = 0.0
    paid: float = 0.0
    busy: float = 0.0

    def settle(self, budget: Budget, until: float, steps: int, busy: float) -> None:
        """Enter what has been earned in ``steps`` steps up to a look, and what watching took meanwhile."""
        trained = until - self.since - self.own - self.paid
        if self.since and trained > 0:
            budget.earn(trained, max(steps, 1))
        budget.overhead(HIDDEN * self.own + busy - self.busy)
        self.since, self.own, self.paid, self.busy = until, 0.0, 0.0, busy
