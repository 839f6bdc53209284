"""Which phase a new run is in, from the readings so far (arXiv 2308.09543)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thalweg.probe import _markov
from thalweg.probe._series import Array, Run, aligned, standardised
from thalweg.probe.cost import costs
from thalweg.probe.phases import Phases

__all__ = ["PhaseReading", "follow_phases"]


@dataclass(frozen=True, eq=False)
class PhaseReading:
    """A run seen through the phases of others.

    Attributes:
        steps: step of each point in time.
        probability: shape (time, states): of each state given the readings up to that point.
        log_density: shape (time,): of each point's readings given those before, in nats; far below what the
            fitted runs have, the run is unlike any of them.
    """

    steps: tuple[float, ...]
    probability: Array
    log_density: Array

    @property
    def states(self) -> tuple[int, ...]:
        """The likeliest state at each point, knowing nothing of what follows."""
        return tuple(self.probability.argmax(axis=1).tolist())


@costs(0, 0, memory="the readings, on the host")
def follow_phases(phases: Phases, run: Run) -> PhaseReading:
    """Filter the readings of a run, finished or going on, through fitted phases.

    It is standardised with ``phases.center`` and ``phases.scale``, since a run that goes on does not know its
    own yet; so fit with ``standardise="all"`` if absolute levels should count alike in both.

    Args:
        phases: as :func:`fit_phases` gives them.
        run: as one of its ``runs``.

    Raises:
        ValueError: a reading is missing, not finite, or there are too few.
    """
    _, times, values = aligned("run", run, phases.readings)
    if phases.of == "changes":
        times, values = times[1:], np.diff(values, axis=0)
    shares, densities = _markov.forward(phases.model, standardised(values, phases.center, phases.scale))
    return PhaseReading(tuple(times.tolist()), shares, densities)
