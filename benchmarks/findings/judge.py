"""Was the fault named, and how long before the loss showed it?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from thalweg.watch import Finding

# A look at the curve: medians over so many steps, and the scatter around a slower median.
SMOOTH = 5
SLOW = 25
TIMES = 3.0
# Of losses that do not scatter, as those of whole batches, a hundredth is taken for the scatter.
LEAST = 0.01


def step_found(findings: Iterable[Finding], name: str, onset: int) -> int | None:
    """The first step, at or behind the onset, at which the finding of that name was told."""
    told = (one.found for one in findings if one.name == name)
    return min((step for step in told if step is not None and step >= onset), default=None)


def step_shown(losses: Sequence[float], twin: Sequence[float], onset: int) -> int | None:
    """The step from which on the loss stays away from its twin's; None if it never does.

    Away: the running medians over the last 5 steps differ by more than three times the scatter of the twin,
    which is 1.4826 times the median distance of its losses from their running median, over 25 steps around.
    A loss that is no number is away. What lasts less than 5 steps at the end does not count. A twin that is
    the same run, stopped earlier, is compared as far as it goes.
    """
    losses, twin = losses[: len(twin)], twin[: len(losses)]
    smooth, other = _trailing(losses), _trailing(twin)
    scatter = _scatter(twin)
    with np.errstate(invalid="ignore"):
        near = np.abs(smooth - other) <= TIMES * scatter
    near |= ~np.isfinite(smooth) & ~np.isfinite(other)
    last = np.flatnonzero(near)
    step = int(last[-1]) + 2 if len(last) else 1
    step = max(step, onset, 1)
    return step if step + SMOOTH - 1 <= len(losses) else None


def _trailing(losses: Sequence[float]) -> np.ndarray:
    """At each step the median of the last 5 losses; a loss that is no number counts as infinite."""
    values = np.nan_to_num(np.asarray(losses, float), nan=np.inf, posinf=np.inf, neginf=np.inf)
    before = np.full(SMOOTH - 1, values[0])
    return np.sort(sliding_window_view(np.concatenate([before, values]), SMOOTH), axis=1)[:, SMOOTH // 2]


def _scatter(losses: Sequence[float]) -> np.ndarray:
    values = np.asarray(losses, float)
    usual = _around(values)
    return np.maximum(1.4826 * _around(np.abs(values - usual)), LEAST * np.abs(usual))


def _around(values: np.ndarray) -> np.ndarray:
    """At each step the median over 25 steps around it, fewer at the ends."""
    half = SLOW // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def alarms(findings: Iterable[Finding], but: Collection[str] = ()) -> list[str]:
    """Names of the findings that are a warning or critical, each once."""
    return sorted({one.name for one in findings if one.severity != "info"} - set(but))


def infos(findings: Iterable[Finding]) -> list[str]:
    """Names of the findings that only describe, each once."""
    return sorted({one.name for one in findings if one.severity == "info"})
