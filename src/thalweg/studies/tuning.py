"""Choosing a configuration: every arm tries as many, on the same seeds, and all tries are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

from thalweg.studies.study import Config

__all__ = ["Attempt", "Tuned", "tuned"]

T = TypeVar("T")


@dataclass(frozen=True)
class Attempt:
    """One configuration and its score on each tuning seed."""

    config: Config
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.scores)


@dataclass(frozen=True)
class Tuned:
    """The chosen configuration, and every attempt in the order of the grid."""

    config: Config
    tried: tuple[Attempt, ...]


def tuned(
    run: Callable[[Config, int], T],
    grid: Sequence[Config],
    seeds: Iterable[int],
    score: Callable[[T], float],
    lower_is_better: bool = True,
) -> Tuned:
    """Run every configuration of ``grid`` on every seed and choose the best mean score; the first of equals.

    A grid of one is chosen without running it.

    Args:
        run: (configuration, seed) to a finished run.
        score: a finished run to a finite number.

    Raises:
        ValueError: if the grid or the seeds are empty.
    """
    seeds = tuple(seeds)
    if not grid or not seeds:
        raise ValueError(f"grid and seeds must not be empty, got {len(grid)} and {len(seeds)}")
    if len(grid) == 1:
        return Tuned(grid[0], (Attempt(grid[0], ()),))
    tried = tuple(Attempt(config, tuple(score(run(config, seed)) for seed in seeds)) for config in grid)
    best = (min if lower_is_better else max)(tried, key=lambda attempt: attempt.mean)
    return Tuned(best.config, tried)
