"""What a study states before it runs: claim, metric, verdict rules, and both arms with equal budgets."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thalweg._core.checks import check_choice, check_count, check_positive
from thalweg.studies.verdicts import FORMULAS, Rule, check_rules

__all__ = ["Arm", "Config", "Setting", "Study", "Trial", "grid"]

Config = Mapping[str, Any]
TUNING_SEED = 1000  # the first; evaluation seeds count from 0 and stay below
LEAST_SEEDS = 3


def grid(**choices: Sequence[Any]) -> tuple[Config, ...]:
    """Every combination of the choices: ``grid(lr=(1e-3, 1e-2), weight_decay=(0, 1))`` has four."""
    return tuple(dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))


@dataclass(frozen=True)
class Arm:
    """One contestant and the configurations it may choose from; a grid of one is not tuned."""

    name: str
    grid: tuple[Config, ...]


@dataclass(frozen=True)
class Trial:
    """One training run.

    Attributes:
        score: what the setting's metric is about; may be NaN or infinite, which counts as the worst.
        optimizer: ``optim.spec`` of the optimizer, taken before training.
        curve: steps, and the plotted quantity at each.
        numbers: whatever else was measured, by name.
    """

    score: float
    optimizer: Mapping[str, Any]
    curve: tuple[Sequence[float], Sequence[float]]
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One comparison with its own metric, rules and verdict.

    Attributes:
        setting: its name.
        metric: what is scored, in which unit, and what a run that diverges or never arrives counts as.
        verdict: verdict to rule, tried in order, over the median over the seeds of the effect.
        baseline, method: the arms that are compared, with grids of the same length.
        references: further arms, measured the same way and shown beside.
        effect: how two scores make an effect, such as ``"baseline / method"``: above 1 (or above 0, for a
            difference) the method is better.
        worst: what a score that is not finite, or worse than this, counts as.
        axes: what the curves show, with units.
        log_y: whether the plot's y axis is logarithmic.
    """

    setting: str
    metric: str
    verdict: Mapping[str, Rule]
    baseline: Arm
    method: Arm
    references: tuple[Arm, ...] = ()
    effect: str = "baseline / method"
    worst: float
    axes: tuple[str, str]
    log_y: bool = False

    def __post_init__(self) -> None:
        check_rules(self.verdict)
        check_choice("effect", self.effect, FORMULAS)
        if not math.isfinite(self.worst):
            raise ValueError(f"worst must be finite, got {self.worst}")
        names = [arm.name for arm in self.arms]
        if len(set(names)) < len(names):
            raise ValueError(f"arms must have different names, got {names}")
        for arm in self.arms:
            if not arm.grid or len(arm.grid) != len(self.baseline.grid):
                raise ValueError(
                    f"arm {arm.name!r} must try as many configurations as {self.baseline.name!r} "
                    f"({len(self.baseline.grid)}), got {len(arm.grid)}"
                )

    @property
    def arms(self) -> tuple[Arm, ...]:
        return (self.baseline, self.method, *self.references)

    @property
    def lower_is_better(self) -> bool:
        return self.effect.startswith("baseline")

    def score(self, raw: float) -> float:
        """``raw``, or the worst value where it is not finite or worse than that."""
        if not math.isfinite(raw):
            return self.worst
        return min(raw, self.worst) if self.lower_is_better else max(raw, self.worst)


@dataclass(frozen=True, kw_only=True)
class Study(Setting):
    """A paper's claim and how it is measured; its own setting is the headline.

    Attributes:
        paper: the paper's key in the catalog; the file is called so, with ``_`` for ``-``.
        claim: what should be seen, in our own words.
        beside: further settings, reported beside the headline.
        seeds: evaluation seeds, 0 and up, at least 3.
        tuning_seeds: seeds on which configurations are chosen; disjoint from the others.
        minutes: of one core that a full run takes, about; what it took is in the evidence.
        notes: what a reader of the result should know.
    """

    paper: str
    claim: str
    minutes: float
    beside: tuple[Setting, ...] = ()
    seeds: int = 5
    tuning_seeds: int = 2
    notes: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("minutes", self.minutes)
        check_count("seeds", self.seeds, low=LEAST_SEEDS)
        check_count("tuning_seeds", self.tuning_seeds)
        names = [one.setting for one in self.settings]
        if len(set(names)) < len(names):
            raise ValueError(f"settings must have different names, got {names}")

    @property
    def settings(self) -> tuple[Setting, ...]:
        """The headline first."""
        return (self, *self.beside)
