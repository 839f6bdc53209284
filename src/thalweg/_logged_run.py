"""A run in a store as a law of loss curves needs it: the learning rate of every step, and the losses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from thalweg._core.checks import nearest

if TYPE_CHECKING:
    import numpy as np

    from thalweg.watch import RunStore

SMOOTH = 0.1  # a larger fall between two readings of the rate was a jump
UNSEEN = 0.1  # share of a run that may pass without a look at the rate
SEEN_ANYHOW = 64  # steps: however short the run


@dataclass(frozen=True)
class Logged:
    """A run as the law needs it: the rate of every step, and losses with the steps done before each.

    ``notes`` say what a reader of the forecast has to know about them.
    """

    name: str
    rates: np.ndarray
    steps: np.ndarray
    losses: np.ndarray
    notes: tuple[str, ...] = ()


def logged(store: RunStore, name: str, loss: str) -> Logged:
    """The run with that id, or the latest of that name.

    A reading of the rate is stored when it has moved by a hundredth. Between two the rate goes in a straight
    line, but is held before a fall by more than a tenth; before the first it is held, or rises from 0 if it
    goes on to rise. Where the watch could not afford to look often, a long stretch without a reading may
    hide anything: such a run is refused.
    """
    import numpy as np

    known = store.runs()
    found = [one for one in known if name in (str(one.id), one.name)]
    if not found:
        listed = ", ".join(f"{one.id} ({one.name})" for one in known) or "none"
        raise ValueError(
            f"RUN must be the id or name of a run in {str(store.path)!r}, which holds {listed}; got {name!r}"
            f"{nearest(name, {one.name for one in known})}"
        )
    info = found[-1]
    label = f"run {info.id} ({info.name})"
    names = store.names(info.id)
    if loss not in names:
        there = ", ".join(one for one in names if one.endswith("loss")) or "those of run.log(loss=...)"
        raise ValueError(f"--loss must be a reading of {label}, such as {there}; got {loss!r}")
    read = [one for one in store.readings(info.id, "learning rate") if one.finite]
    if not read or read[0].step > max(SEEN_ANYHOW, UNSEEN * info.steps):
        first = f"first read at step {read[0].step}" if read else "never read"
        raise ValueError(
            f"{label} must have its learning rate from the start, got one {first}; watch the whole run, or "
            "log it with run.log(learning_rate=...)"
        )
    by_step = {one.step: one.value for one in read}
    _refuse_unseen(label, info.about, list(by_step), info.steps)
    at, rates = list(by_step), list(by_step.values())
    every = np.interp(np.arange(1, info.steps + 1), at, rates)
    if len(at) > 1 and rates[1] > rates[0]:
        every[: at[0]] = rates[0] * np.arange(1, at[0] + 1) / at[0]
    for i in range(len(at) - 1):
        if rates[i + 1] < (1 - SMOOTH) * rates[i]:
            every[at[i] - 1 : at[i + 1] - 1] = rates[i]
    # A loss read before a step belongs to the steps done until then; several of one step are averaged.
    losses: dict[int, list[float]] = {}
    lost: list[int] = []
    for one in store.readings(info.id, loss):
        if not one.finite:
            lost.append(one.step)
        elif 1 < one.step <= info.steps + 1:
            losses.setdefault(one.step - 1, []).append(one.value)
    if not losses:
        raise ValueError(f"{label} must have a finite {loss!r} after its first step, got none")
    means = [sum(values) / len(values) for values in losses.values()]
    notes = []
    if lost:
        notes.append(
            f"{label}: readings of {loss!r} that are not finite were left out, {len(lost)} in number and the "
            f"first at step {min(lost)}"
        )
    if info.ended is None:
        notes.append(f"{label} has not ended: schedules are as long as it is so far unless steps= says more")
    return Logged(label, every, np.array(list(losses)), np.array(means), tuple(notes))


def _refuse_unseen(label: str, about: Mapping[str, Any], read: Sequence[int], steps: int) -> None:
    """Refuse a run whose rate may have gone anywhere between two readings, as the watch hardly looked."""
    said = str((about.get("left_out") or {}).get("learning rate", ""))
    if not said:
        return
    looked = re.search(r"ran every (\d+) steps", said)
    apart = int(looked[1]) if looked else steps
    gap = max(after - before for before, after in pairwise([*read, steps]))
    if min(apart, gap) > UNSEEN * steps:
        raise ValueError(
            f"{label} must have its learning rate throughout, got {gap} steps without a reading, since the "
            f"watch, within its time budget, {said}; log it with run.log(learning_rate=...)"
        )
