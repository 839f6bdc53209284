"""The map of phases: which follow each other, and which readings change between them (arXiv 2308.09543)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from thalweg.probe import _markov
from thalweg.probe._series import Array
from thalweg.probe.cost import costs
from thalweg.probe.phases import Phases

__all__ = ["Transition", "transition_map"]


@dataclass(frozen=True)
class Transition:
    """A step from one phase to another.

    Attributes:
        source, target: the states.
        count: how often it was made.
        runs: by which runs.
        probability: share of it among all times that the source was left.
        changes: reading to the mean of the target minus that of the source, in standard deviations; the
            largest in size first.
        influence: reading to how much it pushes towards the target: derivative of the log-probability of the
            target (given all readings so far) by the reading in standard deviations, at the last point before
            the transition, averaged; the largest in size first.
    """

    source: int
    target: int
    count: int
    runs: tuple[str, ...]
    probability: float
    changes: dict[str, float]
    influence: dict[str, float]


@costs(0, 0, memory="the readings, on the host")
def transition_map(phases: Phases) -> dict[tuple[int, int], Transition]:
    r"""Every transition that some run made, by (source, target), with the readings that change.

    The derivative is :math:`S_k^{-1}(\mu_k - z_t) - \sum_j p_j S_j^{-1}(\mu_j - z_t)` for the target k, with
    the filtered probabilities :math:`p_j`, means and covariances of the states. It is taken before the
    transition: once the target is certain, no reading can make it more so, and the derivative vanishes.

    Args:
        phases: as :func:`fit_phases` gives them.
    """
    made: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for run, states in phases.states.items():
        for time, (source, target) in enumerate(pairwise(states)):
            if source != target:
                made.setdefault((source, target), []).append((run, time))
    filtered = {run: _markov.forward(phases.model, values)[0] for run, values in phases.values.items()}
    inverses = np.linalg.inv(phases.model.covariances)

    def slope(run: str, time: int, target: int) -> Array:
        z, shares = phases.values[run][time], filtered[run][time]
        pulls = np.einsum("kij,kj->ki", inverses, phases.model.means - z)
        return pulls[target] - shares @ pulls

    found = {}
    for (source, target), times in sorted(made.items()):
        left = sum(len(others) for (first, _), others in made.items() if first == source)
        change = phases.model.means[target] - phases.model.means[source]
        influence = np.mean([slope(run, time, target) for run, time in times], axis=0)
        runs = tuple(dict.fromkeys(run for run, _ in times))
        found[source, target] = Transition(
            source,
            target,
            len(times),
            runs,
            len(times) / left,
            _ranked(phases.readings, change),
            _ranked(phases.readings, influence),
        )
    return found


def _ranked(readings: tuple[str, ...], values: Array) -> dict[str, float]:
    return {readings[n]: float(values[n]) for n in np.argsort(-np.abs(values), kind="stable")}
